"""Training slice by slice, from the top layers down (S3T, section 3.2).

Stage j of an order trains the adapters of the j-th group of layers from the top (and the output
layer, where that is new) on the first j slices of the order. Groups above are frozen and active,
the layers below have no adapters yet: all that is under the stage's group is the base, the same
for every order, shard and epoch, and may be evaluated once (`Plan.cached`). From the bottom up
(`Plan.direction`) the frozen groups lie below, and only what no stage adapts can be.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxunlearn.core import Stage, adapters, ensemble, finite, loop, members, stages, tree
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Objective, TrainState
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import augment, batches
from jaxunlearn.exact.plan import Plan, Prefix, StageRecipe
from jaxunlearn.exact.sliceable import Network

Weights = dict[
    str, Any
]  # of a stage: `adapter`: matrices of one group by name, `head`: the output layer
Progress = Callable[[int, int, int], None]  # level, prefixes trained, prefixes in all


class Slices(NamedTuple):
    """Examples in the places of their slices.

    Attributes:
        examples: pytree of arrays [m L capacity, ...]; slice s of shard a begins at
            (a L + s) capacity.
        present: bool [m L capacity], places that hold an example.
    """

    examples: Any
    present: np.ndarray


def arrange(plan: Plan, examples: Any, places: np.ndarray) -> Slices:
    """Puts examples into their slices.

    An example's place depends on the examples of its own slice alone: they stand in the order in
    which they are given.

    Args:
        plan: the plan.
        examples: pytree of arrays [n, ...].
        places: int [n], a L + s for slice s of shard a; -1 leaves an example out.

    Raises:
        ValueError: a place that does not exist, or a slice with more examples than its capacity.
    """
    places, n_places = np.asarray(places), plan.n_shards * plan.n_slices
    if places.size and not (-1 <= places.min() and places.max() < n_places):
        raise ValueError(f"places are {places.min()} to {places.max()}; -1 to {n_places - 1} only")
    counts = np.bincount(places[places >= 0], minlength=n_places)
    if counts.max() > plan.capacity:
        full = int(counts.argmax())
        raise ValueError(
            f"slice {full % plan.n_slices} of shard {full // plan.n_slices} has {counts.max()} "
            f"examples; the plan's capacity is {plan.capacity}"
        )
    source = np.full((n_places, plan.capacity), -1)
    for place in range(n_places):
        own = np.flatnonzero(places == place)
        source[place, : len(own)] = own
    present = source.ravel() >= 0

    def put(array: Any) -> np.ndarray:
        array = np.asarray(array)
        # What a place without an example holds is 0, not a neighbour's.
        own = array[np.maximum(source.ravel(), 0)]
        own[~present] = 0
        return own

    return Slices(jax.tree.map(put, examples), present)


def train(
    network: Network,
    base: Tree,
    plan: Plan,
    slices: Slices,
    *,
    only: Iterable[Prefix] | None = None,
    known: Mapping[Prefix, Weights] | None = None,
    mesh: Mesh | None = None,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> dict[Prefix, Weights]:
    """Trains every prefix of every order once, level by level, in lanes over one base.

    Bits depend on the plan, the base and the slices of the prefix: not on other slices, on `only`,
    on the number of devices, or on where a run was interrupted.

    Args:
        network: what is trained.
        base: its parameters before; the head's are where every order begins.
        plan: the plan.
        slices: see `arrange`.
        only: prefixes to train, with all of their own prefixes; by default those of all orders.
        known: stages that were trained before by the same plan on the same slices: they are taken
            as they are, as SISA takes a checkpoint from before a deleted slice.
        mesh: devices that share the lanes.
        folder: for finished lanes, to resume from; for one base, plan and set of slices.
        progress: called as lanes finish.

    Returns:
        What each stage trained, by prefix, those that were known included; see `assembled`.

    Raises:
        ValueError: more layers than the network has, or a rank that its kernels do not allow.
    """
    check_plan(network, plan)
    trained, levels = dict(known or {}), range(1, plan.n_slices + 1)
    only = [p for level in levels for p in plan.prefixes(level)] if only is None else only
    wanted = {(shard, order[:level]) for shard, order in only for level in levels}
    for level in levels:
        todo = [p for p in plan.prefixes(level) if p in wanted and p not in trained]
        if not todo:
            continue
        store = None if folder is None else BlockStore(Path(folder) / f"level-{level}")
        report = progress and functools.partial(_report, progress, level, len(todo))
        results = ensemble.run(
            _training(network, plan.program, level),
            _shared(network, base, plan, slices, level),
            _members(network, base, plan, todo, trained),
            width=plan.lane_width,
            mesh=mesh,
            store=store,
            check=functools.partial(_check_finite, todo),
            callback=report,
        )
        for i, prefix in enumerate(todo):
            trained[prefix] = tree.take(results["stage"], i)
    return trained


def assembled(plan: Plan, trained: dict[Prefix, Weights], shard: int, order: int) -> Weights:
    """One order as it is stored: a single adapter, of which every prefix is a part, and L heads.

    Returns:
        `adapter`: matrices by name, [L layers_per_slice, ...] from the lowest adapted layer up;
        `heads`: the output layer after each stage, leading axis L (if it trains).
    """
    whole = plan.orders[shard][order]
    of_level = [trained[shard, whole[:level]] for level in range(1, plan.n_slices + 1)]
    out: Weights = {"adapter": _stacked(plan, [stage["adapter"] for stage in of_level])}
    if "head" in of_level[0]:
        out["heads"] = tree.stack(jax.device_get(stage["head"]) for stage in of_level)
    return out


def stage_of(plan: Plan, order: Weights, level: int) -> Weights:
    """What one stage trained, out of an assembled order."""
    first, last = plan.group(level)
    stage: Weights = {"adapter": tree.take(order["adapter"], slice(first, last))}
    if "heads" in order:
        stage["head"] = tree.take(order["heads"], level - 1)
    return stage


def augmentation(recipe: StageRecipe) -> Callable[[Key, jax.Array], jax.Array]:
    """A function of a key and images [n, H, W, C]."""

    def crop(key: Key, x: jax.Array) -> jax.Array:
        return augment.translate(key, x, pixels=max(1, x.shape[1] // 8))

    known = {"crop": crop, "flip": augment.flip}
    return augment.compose(*(known[name] for name in recipe.augment))


def check_plan(network: Network, plan: Plan) -> None:
    """Raises a ValueError if the network has too few layers for a plan, or too small ones."""
    needed = plan.n_adapted
    if needed > network.n_layers:
        raise ValueError(
            f"layers_per_slice is {plan.layers_per_slice}; {plan.n_slices} slices need {needed} "
            f"layers, and the network has {network.n_layers}"
        )

    def adapted(key: Key) -> Tree:  # raises if the rank is too large
        return window(network, network.model.init(key)[0], plan, 0, needed, key)

    jax.eval_shape(adapted, jax.random.key(0))


def window(network: Network, base: Tree, plan: Plan, first: int, last: int, key: jax.Array) -> Tree:
    """Layers `first` to `last` of the base with fresh adapters on them."""
    layers = {"layers": tree.take(base["layers"], slice(first, last))}
    recipe = plan.recipe
    return adapters.attach(
        layers, network.targets, recipe.rank, recipe.alpha, key, rank_stabilized=True
    )


def _stacked(plan: Plan, groups: list[Tree]) -> Tree:
    """What the first stages trained, as one stack of layers from the lowest up."""
    ordered = groups[::-1] if plan.direction == "top_down" else groups
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *ordered)


class _Layers(NamedTuple):
    """Which layers a stage runs: `start` to `first` are frozen, to `last` train, above are frozen.

    What lies below `start` is the base.
    """

    start: int
    first: int
    last: int


def _layers(network: Network, plan: Plan, level: int) -> _Layers:
    lowest = network.n_layers - plan.n_adapted
    first, last = (lowest + layer for layer in plan.group(level))
    return _Layers(first if plan.direction == "top_down" else lowest, first, last)


def _shared(network: Network, base: Tree, plan: Plan, slices: Slices, level: int) -> Tree:
    """What all prefixes of a level read: the base, and the examples."""
    examples = jax.tree.map(jnp.asarray, slices.examples)
    x = examples["x"]
    if plan.cached:
        x = _below(network, plan.capacity, _layers(network, plan, level).start)(base, x)
    return {
        "base": base,
        "x": x,
        "rest": {name: leaf for name, leaf in examples.items() if name != "x"},
        "weight": jnp.asarray(slices.present, jnp.float32),
    }


@functools.lru_cache(maxsize=64)
def _below(network: Network, capacity: int, stop_at: int) -> Callable[[Tree, jax.Array], jax.Array]:
    """The residual streams of all examples, slice by slice: a slice's do not depend on others."""

    @jax.jit
    def below(base: Tree, x: jax.Array) -> jax.Array:
        by_slice = x.reshape(-1, capacity, *x.shape[1:])
        hidden = jax.lax.map(lambda own: network.layers(base, own, 0, stop_at), by_slice)
        return hidden.reshape(-1, *hidden.shape[2:])

    return below


def _members(
    network: Network, base: Tree, plan: Plan, todo: list[Prefix], trained: dict[Prefix, Weights]
) -> Tree:
    """Of every prefix: its places, its key, the groups trained before, the head it begins with."""
    root = fold(jax.random.key(plan.seed), "exact")
    places = np.array([[shard * plan.n_slices + s for s in order] for shard, order in todo])
    places = places[..., None] * plan.capacity + np.arange(plan.capacity)
    rows: dict[str, Any] = {
        "rows": places.reshape(len(todo), -1),
        "key": jnp.stack([fold(root, shard, *order) for shard, order in todo]),
    }
    before = [
        [trained[shard, order[:level]] for level in range(1, len(order))] for shard, order in todo
    ]
    if before[0]:
        stacks = [_stacked(plan, [stage["adapter"] for stage in own]) for own in before]
        rows["before"] = tree.stack(stacks)
    if network.trains_head:
        heads = [own[-1]["head"] if own else base["head"] for own in before]
        rows["head"] = tree.stack(jax.device_get(heads))
    return rows


@functools.lru_cache(maxsize=64)  # the same function is the same program, compiled once
def _training(network: Network, plan: Plan, level: int) -> Callable[[Any, Any], Tree]:
    """A function of one prefix of `level` slices: the stage that reads the last of them."""
    layers, n_steps = _layers(network, plan, level), plan.n_steps(level)
    rate = optax.linear_schedule(plan.recipe.learning_rate, 0.0, n_steps)
    stage = Stage(
        "slices",
        _objective(network, plan, layers),
        None,
        optax.adamw(rate, weight_decay=0.0),
        n_steps,
        trainable=(adapters.TRAINABLE, *[r"head(/.*)?"] * network.trains_head),
        every=n_steps,
    )
    source = lambda reads: batches(reads["arrays"], reads["rows"], plan.recipe.batch_size)  # noqa: E731
    return members.whole(stage, functools.partial(_start, network, plan, layers), source, _kept)


def _objective(network: Network, plan: Plan, layers: _Layers) -> Objective:
    """The mean loss of the examples that are present, of fresh adapters between frozen layers."""
    start, first, last = layers
    augmented, dropout = augmentation(plan.recipe), plan.recipe.dropout

    def objective(params, stats, reads, batch, key):
        x, parts = batch["x"], (reads["lower"], params["adapter"], reads["upper"])
        if dropout:
            parts = [
                adapters.drop(part, dropout, fold(key, "dropout", where))
                for part, where in zip(parts, ("below", "group", "above"), strict=True)
            ]
        below, group, above = parts
        if not plan.cached:
            x = network.layers(reads["base"], augmented(fold(key, "augment"), x), 0, start)
        x = jax.lax.stop_gradient(network.layers(below, x, start, first))
        x = network.layers(group, x, first, last)
        x = network.layers(above, x, last, network.n_layers)
        head = {"head": params["head"]} if network.trains_head else {}
        sums, counts = network.losses(reads["base"] | head, x, batch["rest"])
        weight = batch["weight"]
        loss = jnp.sum(weight * sums) / jnp.maximum(jnp.sum(weight * counts), 1)
        return loss, (stats, {})

    return objective


def _start(
    network: Network, plan: Plan, layers: _Layers, shared: Any, member: Any
) -> tuple[TrainState, Any]:
    """The state of a prefix before its stage, and what its steps read."""
    start, first, last = layers
    fresh = window(network, shared["base"], plan, first, last, fold(member["key"], "adapter"))
    params = {"adapter": fresh} | ({"head": member["head"]} if network.trains_head else {})
    frozen = functools.partial(_frozen, network, shared["base"], plan)
    lower, upper = None, member.get("before")
    if plan.direction == "bottom_up":
        lower, upper = upper, lower
    return stages.init(params), {
        "base": shared["base"],
        "lower": frozen(start, first, lower),
        "upper": frozen(last, network.n_layers, upper),
        "arrays": {name: shared[name] for name in ("x", "rest", "weight")},
        "rows": member["rows"],
    }


def _kept(result: loop.Result) -> Tree:
    stage = result.state.params | {
        "adapter": tree.nested(tree.named(result.state.params["adapter"]))
    }
    return {"stage": stage, "losses": result.metrics["loss"]}


def _frozen(
    network: Network, base: Tree, plan: Plan, first: int, last: int, before: Tree | None
) -> Tree:
    """Layers of the base, with the adapters of the stages before if they are given."""
    if before is None:
        return {"layers": tree.take(base["layers"], slice(first, last))}
    return adapters.load(window(network, base, plan, first, last, jax.random.key(0)), before)


def _report(progress: Progress, level: int, total: int, done: int) -> None:
    progress(level, done, total)


def _check_finite(todo: list[Prefix], lane: dict[str, Any], first: int) -> None:
    def what(number: int) -> str:
        shard, order = todo[number]
        return f"the loss of shard {shard}, slices {list(order)},"

    finite.check_members(what, lane["losses"], first)
