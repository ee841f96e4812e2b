"""Stages over models: many models go through a stage, each with its own data, key and early stop.

There are two ways, which take the same steps:

- `whole` makes a function of one model for `ensemble.run`, a stage from its start to its end as one
  program. A lane is kept when it is finished.
- `run` takes all models on by a block of steps a call, in lanes too, and after each call it is kept
  how far they are. Models that have stopped cost nothing more.

`runner` is for models that go through several stages or orders of them (`stages.run_orders`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import ensemble, finite, loop, stages, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.sources import as_source
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import TrainState

History: TypeAlias = dict[str, np.ndarray]


class Fitted(NamedTuple):
    """What `run` returns, of N models.

    Attributes:
        state: with all parameters, leading axis N, the best weights restored.
        metrics: means of the step metrics between checks: [N, checks], NaN after a model's end.
        checks: metrics of `evaluate`, likewise.
        best_checks: for each `EarlyStop`, the check whose weights it restored (-1: none), [N].
    """

    state: TrainState
    metrics: History
    checks: History
    best_checks: tuple[np.ndarray, ...]


def init(params: tree.Tree, stats: tree.Tree | None = None) -> TrainState:
    """The state of N models before their first stage, from parameters with a leading axis."""
    return jax.vmap(stages.init)(params, stats or {})


def whole(
    stage: Stage,
    start: Callable[[Any, Any], tuple[TrainState, Any]],
    data: Callable[[Any], Any],
    keep: Callable[[loop.Result], tree.Tree],
) -> Callable[[Any, Any], tree.Tree]:
    """A function of one model for `ensemble.run`: a stage from its start to its end.

    Args:
        stage: the stage; its `data` is not looked at, and its `block` must be None.
        start: `start(shared, member) -> (state with all parameters, reads)`, where `reads` is what
            the objective and the evaluation get as `shared`.
        data: `data(reads) -> source`.
        keep: function of the loop's result, whose state is that of the trainable part.

    Returns:
        `(shared, member) -> kept`; the key of the stage is `member["key"]` folded by "steps".
    """

    def one(shared: Any, member: Any) -> tree.Tree:
        state, reads = start(shared, member)
        stage_of_one = dataclasses.replace(stage, data=data(reads))
        key = fold(member["key"], "steps")
        return keep(stages.run_stage(stage_of_one, state, key, shared=reads)[1])

    return one


def run(
    stage: Stage,
    state: TrainState,
    keys: Key,
    *,
    data: Callable[[Any], Any] | None = None,
    shared: Any = None,
    each: Any = None,
    width: int = 1,
    mode: ensemble.Mode = "vmap",
    mesh: Mesh | None = None,
    point: ResumePoint | None = None,
    callback: Callable[[int, History], None] | None = None,
) -> Fitted:
    """Takes N models through one stage, by a block a call.

    Args:
        stage: what each of them does. A block is `stage.block` steps, by default those between two
            checks, or all if there are none.
        state: with all parameters, leading axis N.
        keys: the stage's key of each model, [N]; or of all, []: then each model draws from those of
            the stage folded by its number.
        data: `data(reads) -> source` of one model, the same function for the same program; by
            default all models read the stage's.
        shared: inputs of all models.
        each: inputs of single models, leading axis N. `reads`, which the objective and the
            evaluation get as `shared`, is `{"shared": shared, "each": its part of each}`; without
            `each` it is `shared`.
        width: models per lane, see `ensemble.run`.
        mode: see there.
        mesh: by default one device.
        point: where it is kept how far the models are, and what a run goes on from to the same bits
            if nothing else has changed.
        callback: `callback(checks done, checks)` after each block, all checks as in `Fitted`.

    Raises:
        ValueError: unequal stretches, or the progress of other models.
        NonFiniteError: a model diverged; the blocks before are kept.
    """
    block, mesh = _block(stage), mesh or meshes.make({"models": 1})
    begun, frozen = _begin(stage, state)
    progress = jax.vmap(functools.partial(loop.start, stops=stage.stops))(begun)
    kept = _Kept.read(point, jax.tree.map(np.asarray, progress))
    n = len(kept.progress.done)
    members = {"frozen": frozen, "keys": jnp.broadcast_to(keys, (n,)), "each": each}
    members |= {} if keys.shape else {"number": np.arange(n)}
    everything = {"shared": shared, "source": None if data else as_source(stage.data)}
    everything = ensemble.placed(everything, mesh)  # once, and not in every call
    advance = _advance(stages.programs(stage), stage.every, stage.stops, data, stage.n_steps, block)
    while len(alive := kept.alive(stage.n_steps)):
        rows = tree.take(members | {"progress": kept.progress}, alive)
        results = ensemble.run(advance, everything, rows, width=width, mode=mode, mesh=mesh)
        kept = kept.extended(stage, alive, results)
        if point is not None:
            point.write(kept.progress, metrics=kept.metrics, checks=kept.checks)
        if callback is not None:
            callback(kept.n_stretches, kept.checks)
    state, best_checks = jax.vmap(loop.finish)(jax.tree.map(jnp.asarray, kept.progress))
    state = dataclasses.replace(state, params=jax.vmap(tree.combine)(state.params, frozen))
    return Fitted(state, kept.metrics, kept.checks, tuple(map(np.asarray, best_checks)))


def runner(n_models: int, *, mesh: Mesh | None = None) -> stages.Runner:
    """Lets `stages.run` and `stages.run_orders` take N models at once, as one lane.

    They differ in where they begin (see `init`) and in what they draw: each draws from the key of a
    stage folded by its number. All read the data of the stage and what is shared.
    """

    def run_stage(stage, state, key, *, shared=None, report=None, point=None):
        tell = report and (lambda done, _: report(done * stage.every, stage.n_steps))
        options = {"width": n_models, "mesh": mesh, "point": point, "callback": tell}
        fitted = run(stage, state, key, shared=shared, **options)
        return fitted.state, fitted

    return stages.Runner(_begin, run_stage)


def _begin(stage: Stage, state: TrainState) -> tuple[TrainState, tree.Tree]:
    return jax.vmap(functools.partial(stages.begin, stage))(state)


def _block(stage: Stage) -> int:
    block = stage.block or (stage.every if stage.evaluate else stage.n_steps)
    if stage.check_start or stage.n_steps % stage.every or block % stage.every:
        raise ValueError(
            f"Stage {stage.name}: n_steps is {stage.n_steps}, block {block}, every {stage.every} "
            f"and check_start {stage.check_start}; multiples of every without a check at the start "
            "are needed, or `members.whole`"
        )
    return block


# The same functions and lengths give the same function, and `ensemble.lanes` its program.
@functools.lru_cache(maxsize=64)
def _advance(programs, every, stops, data, n_steps, block) -> Callable[[Any, Any], Any]:
    step, checks = programs[0], loop.Checks(programs[1], every, stops)

    def numbered(state: Any, shared: Any, batch: Any, key: Key) -> Any:
        """Draws from the key folded by the model's number."""
        return step(state, shared, batch, fold(key, "member", shared["number"]))

    def advance(everything: Any, member: Any) -> Any:
        """One block of one model."""
        shared, each, number = everything["shared"], member["each"], member.get("number")
        reads = shared if each is None else {"shared": shared, "each": each}
        source = everything["source"] if data is None else as_source(data(reads))
        progress, metrics, values = loop.advance(
            member["progress"],
            {"frozen": member["frozen"], "shared": reads, "number": number},
            source if number is None else _Numbered(source, number),
            member["keys"],
            n_steps,
            step=step if number is None else numbered,
            checks=checks,
            block=block,
            ragged=False,
        )
        between = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]).mean(1), metrics)
        flat = dict(enumerate(jax.tree.leaves(progress)))  # a NamedTuple would not come back
        return {"progress": flat, "metrics": between, "checks": values}

    return advance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Numbered:
    """A source of one model, which draws from the key folded by the model's number."""

    source: Any
    number: jax.Array

    def plan(self, key: Key, steps: jax.Array) -> Any:
        return self.source.plan(fold(key, "member", self.number), steps)

    def gather(self, row: Any, key: Key) -> Any:
        return self.source.gather(row, fold(key, "member", self.number))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """How far the models are, on the host: progress, and the history as in `Fitted`."""

    progress: loop.Progress
    metrics: History
    checks: History

    @classmethod
    def read(cls, point: ResumePoint | None, start: loop.Progress) -> "_Kept":
        progress, beside = (point and point.read(start)) or (start, {})
        return cls(progress, beside.get("metrics", {}), beside.get("checks", {}))

    @property
    def n_stretches(self) -> int:
        """Stretches of steps so far, each of which ends with a check."""
        return next(iter(self.metrics.values())).shape[1] if self.metrics else 0

    def alive(self, n_steps: int) -> np.ndarray:
        """Numbers of the models that go on."""
        return np.flatnonzero((self.progress.done < n_steps) & ~self.progress.stopped)

    def extended(self, stage: Stage, alive: np.ndarray, results: dict[str, Any]) -> "_Kept":
        """With what the living models have done; NaN for the others.

        Raises:
            NonFiniteError: a model diverged. Also since NaN marks one that has ended.
        """
        structure = jax.tree.structure(self.progress)
        leaves = [results["progress"][str(i)] for i in range(structure.num_leaves)]
        progress = jax.tree.unflatten(structure, leaves)
        made = (progress.done - self.progress.done[alive]) // stage.every
        was_made = np.arange(made.max()) < made[:, None]
        histories = []
        for history, name in ((self.metrics, "metrics"), (self.checks, "checks")):
            news = tree.take(results.get(name, {}), np.s_[:, : made.max()])
            for what, values in news.items():
                ended = ~was_made.reshape(*was_made.shape, *[1] * (values.ndim - 2))
                before = np.zeros((len(alive), self.n_stretches, *values.shape[2:]))
                finite.check_members(
                    lambda i, what=what: f"stage {stage.name}: {what} of model {alive[i]}",
                    np.concatenate([before, np.where(ended, 0, values)], axis=1),
                    axis="check",
                    advice="; a smaller learning rate may help. What was there before is kept",
                )
            longer = {w: self._longer(history.get(w), alive, new) for w, new in news.items()}
            histories.append(longer)
        put = functools.partial(_put, alive)
        return _Kept(jax.tree.map(put, self.progress, progress), *histories)

    def _longer(self, before: np.ndarray | None, alive: np.ndarray, new: np.ndarray) -> np.ndarray:
        nothing = np.full((len(self.progress.done), *new.shape[1:]), np.nan, new.dtype)
        before = nothing[:, :0] if before is None else before
        return np.concatenate([before, _put(alive, nothing, new)], axis=1)


def _put(alive: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    out = old.copy()
    out[alive] = new
    return out
