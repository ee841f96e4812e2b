"""The training of a path study: stages in every order, then every path forgets with every loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import Stage, adapters, ensemble, finite, keys, loop, members, stages, tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.optimizers import warmup_stable_decay
from jaxunlearn.core.run_folder import Progress, ticking
from jaxunlearn.core.step import Objective
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
        members.init(jax.vmap(fresh)(jnp.arange(s.seeds))),
        keys.fold(root, "stages"),
        shared=frozen_part(job),
        snapshots=job.folder.path / "stages",
        # One lane; a mesh only where the base lies on it.
        runner=members.runner(s.seeds, mesh=job.mesh if "model" in job.mesh.shape else None),
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
    root = keys.fold(jax.random.key(s.seed), "unlearning")
    forget_set = jax.tree.map(jnp.asarray, job.sets[s.forget])
    shared = {"base": frozen_part(job), "forget": forget_set}
    runs = {
        "adapter": tree.stack(tree.take(paths[job.orders[p]], i) for p, _, i in job.members),
        "loss": jnp.array([loss for _, loss, _ in job.members]),
        "key": jnp.stack([keys.fold(root, seed) for _, _, seed in job.members]),
        "ref_nll": _references(job, paths, shared),
    }
    shared = shared | {"probes": jax.tree.map(jnp.asarray, job.probes)}
    n_rows, width = len(job.sets[s.forget].tokens), _lane_width(job)
    setup = _Setup(
        s.losses,
        s.unlearn_learning_rate,
        s.unlearn_batch_size,
        s.unlearn_epochs * (n_rows // min(s.unlearn_batch_size, n_rows)),
        s.every,
        s.rank,
        s.alpha,
        s.remat,
        merged=width == 1,
    )
    return ensemble.run(
        _forgetting(job.pretrained.model, setup),
        shared,
        runs,
        width=width,
        mesh=job.mesh,
        store=job.folder.lanes("unlearning"),
        check=functools.partial(_check_finite, job),
        callback=ticking(job.folder, "unlearning", len(job.members), progress),
    )


def _references(job: Job, paths: dict[tuple[str, ...], Tree], shared: Any) -> Any:
    """NLLs of the forget set before unlearning, [members, N]: of a path, whatever its losses.

    Zeros where no loss reads them.
    """
    s = job.settings
    places = sorted({(p, seed) for p, _, seed in job.members})
    number = [places.index((p, seed)) for p, _, seed in job.members]
    if not language_objectives.READ_REFERENCE.intersection(s.losses):
        return np.zeros((len(number), job.sets[s.forget].tokens.shape[0]), np.float32)
    results = ensemble.run(
        _referencing(job.pretrained.model, s.unlearn_batch_size),
        shared,
        {"adapter": tree.stack(tree.take(paths[job.orders[p]], i) for p, i in places)},
        width=_lane_width(job),
        mesh=job.mesh,
        store=job.folder.lanes("references"),
    )
    return results["ref_nll"][np.array(number)]


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
    tuning = language_objectives.fine_tuning(job.pretrained.model, remat=s.remat)
    objective = language_objectives.on_base(tuning)
    optimizer = _adamw(s.learning_rate, n_steps)
    return Stage(name, objective, source, optimizer, n_steps, block=source.steps_per_epoch)


@functools.lru_cache(maxsize=64)  # the same optimizer is the same program, compiled once
def _adamw(learning_rate: float, n_steps: int) -> optax.GradientTransformation:
    return optax.adamw(warmup_stable_decay(learning_rate, n_steps), weight_decay=0.0)


class _Setup(NamedTuple):
    """What decides the program of a run of unlearning."""

    losses: tuple[str, ...]
    learning_rate: float
    batch_size: int
    n_steps: int
    every: int
    rank: int
    alpha: float
    remat: bool
    merged: bool  # a lane of one keeps its path merged: nothing to share, and faster steps


@functools.lru_cache(maxsize=16)  # the same function is the same program, compiled once
def _referencing(model: Model, chunk: int) -> Callable[[Any, Any], dict[str, jax.Array]]:
    def one(shared, member):
        before = tree.combine(member["adapter"], shared["base"])
        nll = language_objectives.reference_nll(model, before, shared["forget"], chunk)
        return {"ref_nll": nll}

    return one


@functools.lru_cache(maxsize=16)
def _forgetting(model: Model, setup: _Setup) -> Callable[[Any, Any], dict[str, Any]]:
    """A function of one run of unlearning: a path, a loss, a seed."""
    stage = Stage(
        "unlearning",
        _chosen_loss(model, setup),
        None,
        _adamw(setup.learning_rate, setup.n_steps),
        setup.n_steps,
        trainable=adapters.TRAINABLE,
        evaluate=lambda state, reads: measure(model, state.params, reads["probes"]),
        every=setup.every,
        check_start=True,
    )

    def start(shared, member):
        before = tree.combine(member["adapter"], shared["base"])
        before = adapters.merge(before) if setup.merged else before
        # A fresh adapter on top of the path's own, which is frozen, merged or not.
        key = keys.fold(member["key"], "adapter")
        state = stages.init(_adapted(before, setup.rank, setup.alpha, key))
        arrays = {"sequences": shared["forget"], "ref_nll": member["ref_nll"]}
        return state, {"loss": member["loss"], "probes": shared["probes"], "arrays": arrays}

    def source(reads):
        n = len(reads["arrays"]["ref_nll"])
        return batches(reads["arrays"], np.arange(n), setup.batch_size)

    return members.whole(stage, start, source, _kept)


def _chosen_loss(model: Model, setup: _Setup) -> Objective:
    """The loss whose number is `reads["loss"]`."""
    of_name = {name: language_objectives.LOCAL[name] for name in setup.losses}

    def objective(params, stats, reads, batch, key):
        loss = language_objectives.one_of(of_name, reads["loss"])
        local = language_objectives.forgetting(model, loss, remat=setup.remat)
        return local(params, stats, None, batch, key)

    return objective


def _kept(result: loop.Result) -> dict[str, Any]:
    adapter = tree.nested(tree.named(result.state.params))
    return {"measured": result.checks, "losses": result.metrics["loss"], "adapter": adapter}


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
    def what(number: int) -> str:
        path, loss, seed = job.members[number]
        order = "+".join(job.orders[path])
        return f"unlearning: the loss {job.settings.losses[loss]} of path {order}, seed {seed},"

    finite.check_members(what, lane["losses"], first)
