"""Outputs of a trained ensemble: what is served after deletions, and all there is to serve.

A prefix of k stages is a network whose adapters are on in its top k groups of layers, with the head
of stage k. Which groups are on is a mask, and which order answers an index: neither is compiled in.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import adapters
from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn.exact.deletion import Served
from jaxunlearn.unlearn.exact.networks import Network
from jaxunlearn.unlearn.exact.plan import Plan
from jaxunlearn.unlearn.exact.training import Stage, window


def stacked(stages: list[list[Stage]]) -> Tree:
    """Assembled orders [m][B] (see `training.assembled`) as one tree, leading axes [m, B]."""
    rows = [jax.tree.map(lambda *leaves: np.stack(leaves), *own) for own in stages]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


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
    own: dict[str, Any] = {
        "adapter": jax.tree.map(lambda leaf: leaf[shards, served.order], weights["adapter"]),
        "on": mask(plan, served.depth),
    }
    if network.trains_head:
        # A dead shard's head is not read; that of stage 1 stands in.
        stage = np.maximum(served.depth, 1) - 1
        own["head"] = jax.tree.map(lambda leaf: leaf[shards, served.order, stage], weights["heads"])
    return own


def mask(plan: Plan, depth: np.ndarray) -> np.ndarray:
    """Which adapted layers are on, from the lowest up, float32 [..., L layers_per_slice]."""
    group = np.arange(plan.n_slices * plan.layers_per_slice)[::-1] // plan.layers_per_slice
    return (group < np.asarray(depth)[..., None]).astype(np.float32)


@functools.lru_cache(maxsize=64)  # the same function is the same program, compiled once
def outputs(network: Network, plan: Plan) -> Callable[[Tree, Tree, Any], jax.Array]:
    """A compiled `(base, chosen, x) -> outputs [m, n, ...]` of all shards."""
    first = network.n_layers - plan.n_slices * plan.layers_per_slice

    @jax.jit
    def run(base: Tree, own: Tree, x: Any) -> jax.Array:
        hidden = network.below(base, x, first)  # what all shards share
        fresh = window(network, base, plan, first, network.n_layers, jax.random.key(0))

        def one(own: Tree) -> jax.Array:
            layers = adapters.switch(adapters.load(fresh, own["adapter"]), own["on"])
            params = base | layers | ({"head": own["head"]} if network.trains_head else {})
            return network.model.apply(params, {}, hidden, start_at=first)[0]

        return jax.vmap(one)(own)

    return run


def predict(
    network: Network, plan: Plan, base: Tree, own: Tree, x: Any, alive: np.ndarray, chunk: int = 256
) -> np.ndarray:
    """The mean output of living shards for any number of inputs, a chunk at a time.

    Raises:
        ValueError: no shard is alive.
    """
    if not alive.any():
        raise ValueError("no shard is alive: the ensemble must be trained again")
    run, n = outputs(network, plan), jax.tree.leaves(x)[0].shape[0]
    found = []
    for at in range(0, n, chunk):
        rows = np.minimum(np.arange(at, at + chunk), n - 1)  # one program for all chunks
        part = run(base, own, jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), x))
        found.append(np.asarray(part)[alive].mean(0)[: n - at])
    return np.concatenate(found)


def all_outputs(
    network: Network, plan: Plan, base: Tree, weights: Tree, x: Any, chunk: int = 256
) -> np.ndarray:
    """Outputs of every order at every depth, [m, B, L, n, ...]: all that deletions can leave.

    A study of deletions then is an index into this array, see `simulation`.
    """
    found = np.empty((plan.budget, plan.n_slices), object)
    for order in range(plan.budget):
        for depth in range(1, plan.n_slices + 1):
            served = Served(
                np.full(plan.n_shards, order, np.int64), np.full(plan.n_shards, depth, np.int64)
            )
            own = chosen(plan, network, weights, served)
            run, n = outputs(network, plan), jax.tree.leaves(x)[0].shape[0]
            parts = []
            for at in range(0, n, chunk):
                rows = np.minimum(np.arange(at, at + chunk), n - 1)
                part = run(base, own, jax.tree.map(lambda leaf, r=rows: jnp.asarray(leaf[r]), x))
                parts.append(np.asarray(part)[:, : n - at])
            found[order, depth - 1] = np.concatenate(parts, axis=1)
    by_order = [np.stack(list(row), axis=1) for row in found]  # [m, L, n, ...]
    return np.stack(by_order, axis=1)
