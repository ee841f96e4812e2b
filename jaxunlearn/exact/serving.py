"""Outputs of a trained ensemble: what is served after deletions, and all there is to serve.

A prefix of k stages is a network whose adapters are on in its top k groups of layers, with the head
of stage k. Which groups are on is a mask, and which order answers an index: neither is compiled in.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import adapters, chunks, tree
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact.deletion import Served
from jaxunlearn.exact.plan import Plan
from jaxunlearn.exact.prefixes import Weights, window
from jaxunlearn.exact.sliceable import Network


def stacked(stages: list[list[Weights]]) -> Tree:
    """Assembled orders [m][B] (see `prefixes.assembled`) as one tree, leading axes [m, B]."""
    return tree.stack(map(tree.stack, stages))


def chosen(plan: Plan, network: Network, weights: Tree, served: Served) -> Tree:
    """What each shard answers with: its order's adapter, the mask of its groups, its head.

    Args:
        plan: the plan.
        network: the network.
        weights: see `stacked`.
        served: order and depth of every shard.

    Returns:
        A tree with leading axis m, for `outputs`.
    """
    shards = np.arange(plan.n_shards)
    picked: dict[str, Any] = {
        "adapter": tree.take(weights["adapter"], (shards, served.order)),
        "on": mask(plan, served.depth),
    }
    if network.trains_head:
        # A dead shard's head is not read; that of stage 1 stands in.
        stage = np.maximum(served.depth, 1) - 1
        picked["head"] = tree.take(weights["heads"], (shards, served.order, stage))
    return picked


def mask(plan: Plan, depth: np.ndarray) -> np.ndarray:
    """Which adapted layers are on, from the lowest up, float32 [..., L layers_per_slice]."""
    stage = np.arange(plan.n_adapted) // plan.layers_per_slice
    stage = stage[::-1] if plan.direction == "top_down" else stage
    return (stage < np.asarray(depth)[..., None]).astype(np.float32)


@functools.lru_cache(maxsize=64)  # the same function is the same program, compiled once
def outputs(network: Network, plan: Plan) -> Callable[[Tree, Tree, Any], jax.Array]:
    """A compiled `(base, chosen, examples) -> outputs [m, n, ...]` of all shards."""
    first, last = network.n_layers - plan.n_adapted, network.n_layers

    @jax.jit
    def run(base: Tree, chosen: Tree, examples: dict[str, Any]) -> jax.Array:
        hidden = network.layers(base, examples["x"], 0, first)  # what all shards share
        rest = {name: leaf for name, leaf in examples.items() if name != "x"}
        fresh = window(network, base, plan, first, last, jax.random.key(0))

        def one(chosen: Tree) -> jax.Array:
            layers = adapters.switch(adapters.load(fresh, chosen["adapter"]), chosen["on"])
            head = {"head": chosen["head"]} if network.trains_head else {}
            after = network.layers(layers, hidden, first, last)
            return network.outputs(base | head, after, rest)

        return jax.vmap(one)(chosen)

    return run


def predict(
    network: Network,
    plan: Plan,
    base: Tree,
    chosen: Tree,
    examples: dict[str, Any],
    alive: np.ndarray,
    chunk: int = 256,
) -> np.ndarray:
    """The mean output of living shards for any number of examples, a chunk at a time.

    Args:
        network: the network.
        plan: the plan.
        base: the frozen base.
        chosen: see `chosen`.
        examples: what the network's outputs need, see `sliceable`.
        alive: bool [m], shards that answer.
        chunk: examples of one call.

    Raises:
        ValueError: no shard is alive.
    """
    if not alive.any():
        raise ValueError("no shard is alive: the ensemble must be trained again")
    return np.concatenate(
        [part[alive].mean(0) for part in _parts(network, plan, base, chosen, examples, chunk)]
    )


def all_outputs(
    network: Network,
    plan: Plan,
    base: Tree,
    weights: Tree,
    examples: dict[str, Any],
    chunk: int = 256,
) -> np.ndarray:
    """Outputs of every order at every depth, [m, B, L, n, ...]: all that deletions can leave.

    A study of deletions then is an index into this array, see `curves`.
    """
    by_order = []
    for order in range(plan.budget):
        by_depth = []
        for depth in range(1, plan.n_slices + 1):
            served = Served(*(np.full(plan.n_shards, value) for value in (order, depth)))
            picked = chosen(plan, network, weights, served)
            parts = list(_parts(network, plan, base, picked, examples, chunk))
            by_depth.append(np.concatenate(parts, axis=1))
        by_order.append(np.stack(by_depth, axis=1))
    return np.stack(by_order, axis=1)


def _parts(
    network: Network, plan: Plan, base: Tree, chosen: Tree, examples: dict[str, Any], chunk: int
) -> Iterator[np.ndarray]:
    """Outputs [m, n, ...] of one chunk after the other."""
    run, n = outputs(network, plan.program), len(examples["x"])
    base, chosen = jax.device_put((base, chosen))
    for rows, size in chunks.blocks(n, chunk):
        part = run(base, chosen, {name: np.asarray(leaf)[rows] for name, leaf in examples.items()})
        yield np.asarray(part)[:, :size]
