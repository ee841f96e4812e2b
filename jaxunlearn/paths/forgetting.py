"""The training of a path study: stages in every order, then every path forgets with every loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import Stage, adapters, ensemble, keys, loop, stages, tree
from jaxunlearn.core.errors import NonFiniteError
from jaxunlearn.core.model import Model
from jaxunlearn.core.optimizers import warmup_stable_decay
from jaxunlearn.core.run_folder import Progress, ticking
from jaxunlearn.core.step import gradient_step, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import batches
from jaxunlearn.paths.job import Job
from jaxunlearn.paths.measures import measure
from jaxunlearn.paths.settings import LORA_TARGETS, Settings
from jaxunlearn.unlearn import language_objectives


def check_rank(params: Tree, settings: Settings) -> None:
    """Raises a ValueError for adapters that do not fit the network."""
    jax.eval_shape(lambda: _adapted(params, settings.rank, settings.alpha, jax.random.key(0)))


def train_stages(job: Job, progress: Progress) -> dict[tuple[str, ...], Tree]:
    """Trains every order of the stages; one adapter goes through all stages of an order.

    Returns:
        For each order, and each without the forget stage, its adapters, leading axis seeds.
    """
    s, base = job.settings, job.pretrained.params
    root = jax.random.key(s.seed)

    def fresh(seed: jax.Array) -> Tree:
        key = keys.fold(root, "adapter", seed)
        return adapters.split(_adapted(base, s.rank, s.alpha, key))[0]

    trained = stages.run_orders(
        {name: _stage(job, name) for name in job.parts},
        job.all_orders,
        stages.init_members(jax.vmap(fresh)(jnp.arange(s.seeds))),
        keys.fold(root, "stages"),
        shared=frozen_part(job),
        snapshots=job.folder.path / "stages",
        callback=lambda prefix, done, total: progress("+".join(prefix), done, total),
    )
    return {order: trained[order].params for order in job.all_orders}


def forget(job: Job, paths: dict[tuple[str, ...], Tree], progress: Progress) -> dict[str, Any]:
    """Lets every path forget with every loss and seed, as lanes of one program over one base.

    Args:
        job: the study.
        paths: adapters of each order, leading axis seeds.
        progress: called as runs finish.

    Returns:
        By name, leading axis members in the order of `job.members`: `measured`, what
        `measures.measure` gives before the first step and at every interval; `losses` of all
        steps; `adapter`, the fresh one that was trained.
    """
    s = job.settings
    of_member = [jax.tree.map(lambda x, i=i: x[i], paths[job.orders[p]]) for p, _, i in job.members]
    root = keys.fold(jax.random.key(s.seed), "unlearning")
    members = {
        "adapter": jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_member),
        "loss": jnp.array([loss for _, loss, _ in job.members]),
        "key": jnp.stack([keys.fold(root, seed) for _, _, seed in job.members]),
        "ref_nll": _references(job, paths),
    }
    shared = _shared(job) | {"probes": jax.tree.map(jnp.asarray, job.probes)}
    how = _How(
        s.losses,
        s.unlearn_learning_rate,
        s.unlearn_batch_size,
        s.unlearn_epochs,
        s.every,
        s.rank,
        s.alpha,
        s.remat,
        _lane_width(job) == 1,
    )
    return ensemble.run(
        _forgetting(job.pretrained.model, how),
        shared,
        members,
        width=_lane_width(job),
        mesh=job.mesh,
        store=job.folder.lanes("unlearning"),
        check=functools.partial(_check_finite, job),
        callback=ticking(job.folder, "unlearning", len(job.members), progress),
    )


def _references(job: Job, paths: dict[tuple[str, ...], Tree]) -> Any:
    """NLLs of the forget set before unlearning, [members, N]: of a path, whatever its losses.

    Zeros where no loss reads them.
    """
    s = job.settings
    places = sorted({(p, seed) for p, _, seed in job.members})
    number = [places.index((p, seed)) for p, _, seed in job.members]
    if not language_objectives.READ_REFERENCE.intersection(s.losses):
        return np.zeros((len(number), job.sets[s.forget].tokens.shape[0]), np.float32)
    of_place = [jax.tree.map(lambda x, i=i: x[i], paths[job.orders[p]]) for p, i in places]
    found = ensemble.run(
        _referencing(job.pretrained.model, s.unlearn_batch_size),
        _shared(job),
        {"adapter": jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_place)},
        width=_lane_width(job),
        mesh=job.mesh,
        store=job.folder.lanes("references"),
    )
    return found["ref_nll"][np.array(number)]


def _shared(job: Job) -> dict[str, Any]:
    """What every run of unlearning reads."""
    forget = jax.tree.map(jnp.asarray, job.sets[job.settings.forget])
    return {"base": frozen_part(job), "forget": forget}


def frozen_part(job: Job) -> Tree:
    """What does not train while a path's adapters do: the base, and the adapters' scales."""
    s = job.settings
    return adapters.split(_adapted(job.pretrained.params, s.rank, s.alpha, jax.random.key(0)))[1]


def with_fresh(params: Tree, job: Job, member: int) -> Tree:
    """A path's parameters with the fresh adapter that a run of unlearning began with on top."""
    s = job.settings
    root = keys.fold(jax.random.key(s.seed), "unlearning")
    key = keys.fold(root, job.members[member][2])
    return _adapted(params, s.rank, s.alpha, keys.fold(key, "adapter"))


def _adapted(params: Tree, rank: int, alpha: float, key: jax.Array) -> Tree:
    return adapters.attach(params, LORA_TARGETS, rank, alpha, key)


def _stage(job: Job, name: str) -> Stage:
    s, part = job.settings, job.parts[name]
    data = jax.tree.map(jnp.asarray, job.sets[name])
    source = batches(data, np.arange(data.tokens.shape[0]), s.batch_size)
    n_steps = part.epochs * source.steps_per_epoch
    objective = language_objectives.on_base(
        language_objectives.fine_tuning(job.pretrained.model, remat=s.remat)
    )
    stage = Stage(
        name,
        objective,
        source,
        _adamw(s.learning_rate, n_steps),
        n_steps,
        block=source.steps_per_epoch,
    )
    return stages.of_members(stage, s.seeds)


@functools.lru_cache(maxsize=64)  # the same optimizer is the same program, compiled once
def _adamw(learning_rate: float, n_steps: int) -> optax.GradientTransformation:
    return optax.adamw(warmup_stable_decay(learning_rate, n_steps), weight_decay=0.0)


class _How(NamedTuple):
    """What decides the program of a run of unlearning."""

    losses: tuple[str, ...]
    learning_rate: float
    batch_size: int
    epochs: int
    every: int
    rank: int
    alpha: float
    remat: bool
    merged: bool  # a lane of one keeps its path merged: nothing to share, and faster steps


@functools.lru_cache(maxsize=16)  # the same function is the same program, compiled once
def _referencing(model: Model, chunk: int) -> Callable[[Any, Any], dict[str, jax.Array]]:
    def one(shared, member):
        before = tree.combine(member["adapter"], shared["base"])
        return {
            "ref_nll": language_objectives.reference_nll(model, before, shared["forget"], chunk)
        }

    return one


@functools.lru_cache(maxsize=16)
def _forgetting(model: Model, how: _How) -> Callable[[Any, Any], dict[str, Any]]:
    """A function of one run of unlearning: a path, a loss, a seed."""
    of_name = {name: language_objectives.LOCAL[name] for name in how.losses}

    def objective(params, stats, shared, batch, key):
        loss = language_objectives.one_of(of_name, shared["loss"])
        full = tree.combine(params, shared["frozen"])
        return language_objectives.forgetting(model, loss, remat=how.remat)(
            full, stats, None, batch, key
        )

    def evaluate(state, shared):
        return measure(model, tree.combine(state.params, shared["frozen"]), shared["probes"])

    def one(shared, member):
        before = tree.combine(member["adapter"], shared["base"])
        before = adapters.merge(before) if how.merged else before
        # A fresh adapter on top of the path's own, which is frozen, merged or not.
        key = keys.fold(member["key"], "adapter")
        own, frozen = adapters.split(_adapted(before, how.rank, how.alpha, key))
        reads = {"frozen": frozen, "loss": member["loss"], "probes": shared["probes"]}
        arrays = {"sequences": shared["forget"], "ref_nll": member["ref_nll"]}
        source = batches(arrays, np.arange(len(member["ref_nll"])), how.batch_size)
        n_steps = how.epochs * source.steps_per_epoch
        optimizer = _adamw(how.learning_rate, n_steps)
        step = gradient_step(objective, optimizer)
        key = keys.fold(member["key"], "steps")

        def interval(carry: Any, bounds: jax.Array) -> tuple[Any, Any]:
            """Measures, then takes the steps up to the next measurement."""

            def take(t: jax.Array, carry: Any) -> Any:
                state, losses = carry
                state, metrics = loop.scan(step, state, reads, source, key, 1, first=t)
                return state, losses.at[t].set(metrics["loss"][0])

            seen = evaluate(carry[0], reads)
            return jax.lax.fori_loop(bounds[0], bounds[1], take, carry), seen

        # The last interval may be a shorter one, and no step follows the last measurement; all of
        # them are one program.
        edges = np.array([*range(0, n_steps, how.every), n_steps, n_steps])
        start = (init_state(own, optimizer), jnp.zeros(n_steps))
        bounds = jnp.stack([edges[:-1], edges[1:]], axis=1)
        (state, losses), measured = jax.lax.scan(interval, start, bounds)
        return {
            "measured": measured,
            "losses": losses,
            "adapter": tree.nested(tree.named(state.params)),
        }

    return one


def _lane_width(job: Job) -> int:
    """Runs computed together: as the settings say, or one on a CPU and what fits elsewhere."""
    n_members = len(job.members)
    if job.settings.lane_width:
        return min(job.settings.lane_width, n_members)
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return 1
    config, s = job.pretrained.config, job.settings
    per_token = config.n_layers * (8 * config.width + 6 * config.mlp_width) * 4
    tokens = s.unlearn_batch_size * job.sets[s.forget].tokens.shape[1]
    free = stats["bytes_limit"] - 4 * tree.size(job.pretrained.params)
    return max(1, min(n_members, int(0.5 * free / (per_token * tokens))))


def _check_finite(job: Job, lane: dict[str, Any], first: int) -> None:
    for number, losses in enumerate(lane["losses"], first):
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            path, loss, seed = job.members[number]
            raise NonFiniteError(
                f"unlearning: the loss {job.settings.losses[loss]} of path "
                f"{'+'.join(job.orders[path])}, seed {seed}, is {losses[bad[0]]} at step {bad[0]} "
                f"of {len(losses)}"
            )
