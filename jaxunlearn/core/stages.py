"""Steps over stages: training in stages, progressive unfreezing, orders with shared prefixes."""

import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import checkpoint, checks, loop, tree
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.loop import EarlyStop, Evaluate
from jaxunlearn.core.sources import as_source
from jaxunlearn.core.step import Objective, Step, TrainState, gradient_step, with_frozen


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: letters, digits, `.`, `_` and `-`; part of the stage's random key.
        objective: what the stage minimises; sees all parameters.
        data: a source of batches (see `core.loop`).
        optimizer: for the trainable part. Stages that share the optimizer (the very object) and the
            objective share their compiled program.
        n_steps: length, an upper bound with `stops`.
        trainable: pattern of the parameters that train; all others stay bit-identical.
        optimizer_state: "fresh", or "carry" to go on with the state of the stage before.
        wrap: extends the gradient step, e.g. `lambda step: with_ema(step, 0.99)`.
        evaluate: `evaluate(state, shared) -> metrics` with all parameters in the state.
        every: steps between evaluations.
        stops: early stopping.
        block: steps of one compiled call, by default all of them. With snapshots each block is one:
            a killed run goes on from there.
        seed_by: "occurrence" makes the stage's randomness depend on its name and how often the
            name came before; "prefix" on the names of all stages before it.
    """

    name: str
    objective: Objective
    data: Any
    optimizer: optax.GradientTransformation
    n_steps: int
    trainable: tree.Pattern = ".*"
    optimizer_state: Literal["fresh", "carry"] = "fresh"
    wrap: Callable[[Step], Step] | None = None
    evaluate: Evaluate | None = None
    every: int = 1
    stops: tuple[EarlyStop, ...] = ()
    block: int | None = None
    seed_by: Literal["occurrence", "prefix"] = "occurrence"

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"Stage: name is {self.name!r}; use letters, digits, '.', '_', '-'")
        allowed = {"optimizer_state": ("fresh", "carry"), "seed_by": ("occurrence", "prefix")}
        for field, values in allowed.items():
            checks.one_of(f"Stage {self.name}: {field}", getattr(self, field), values)


class Trained(NamedTuple):
    """What stages leave behind: the state with all parameters, and each stage's `loop.Result`."""

    state: TrainState
    history: tuple[loop.Result, ...]


def run_stage(
    stage: Stage,
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    callback: Callable[[loop.Progress], None] | None = None,
    resume: loop.Progress | None = None,
) -> tuple[TrainState, loop.Result]:
    """Runs one stage.

    Args:
        stage: the stage.
        state: a state with all parameters; its `opt_state` matters to a "carry" stage only.
        key: the stage's own key, see `stage_key`.
        shared: what the objective reads and does not change.
        callback: called after every block with the progress of the trainable part.
        resume: such a progress, to go on from; the result then has no metrics from before it.

    Returns:
        The state with all parameters, and the loop's result for the trainable part.
    """
    start, frozen = begin(stage, state)
    step, evaluate = programs(stage)
    result = loop.run(
        step,
        start,
        {"frozen": frozen, "shared": shared},
        stage.data,
        key,
        stage.n_steps,
        evaluate=evaluate,
        every=stage.every,
        stops=stage.stops,
        block=stage.block,
        callback=callback and (lambda progress, metrics, checks: callback(progress)),
        resume=resume,
    )
    params = tree.combine(result.state.params, frozen)
    return dataclasses.replace(result.state, params=params), result


def run(
    stages: Iterable[Stage],
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    snapshots: str | os.PathLike | None = None,
) -> Trained:
    """Runs stages in order.

    Args:
        stages: the stages.
        state: where to start, with all parameters.
        key: a typed key; each stage derives its own.
        shared: what the objectives read and do not change.
        snapshots: a folder for the state after each stage, and after each block of one. Stages
            found there are not run again (the history has no entry for them), and the result has
            the same bits.

    Raises:
        ValueError: a snapshot comes from another start, key, or other stages.
    """
    kept = _Snapshots(snapshots, state, key)
    done: tuple[Stage, ...] = ()
    history = []
    for stage in stages:
        prefix = tuple(s.name for s in (*done, stage))
        state, result = kept.run(done, stage, prefix, state, shared)
        done = (*done, stage)
        if result is not None:
            history.append(result)
    return Trained(state, tuple(history))


def run_orders(
    stage_of: Callable[[tuple], Stage] | Mapping[Any, Stage],
    orders: Iterable[tuple],
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    snapshots: str | os.PathLike | None = None,
    callback: Callable[[tuple, int, int], None] | None = None,
) -> dict[tuple, TrainState]:
    """Trains every requested order, running each distinct prefix once.

    Equal to running each order on its own, bit for bit: a stage's randomness depends on its name
    and prefix, never on when it runs.

    Args:
        stage_of: `stage_of(prefix) -> Stage`, the stage of the prefix's last element; or a mapping
            from element to stage.
        orders: tuples of elements.
        state: where every order starts, with all parameters.
        key: a typed key.
        shared: what the objectives read and do not change.
        snapshots: a folder for the state after each prefix, to resume from; see `run`.
        callback: `callback(prefix, steps taken, steps in all)`, called after every block of a
            prefix's last stage, and once if its state was read from `snapshots`.

    Returns:
        The state after every prefix of every order, by prefix; `()` is the start.
    """
    if isinstance(stage_of, Mapping):
        stages_by_name = stage_of
        stage_of = lambda prefix: stages_by_name[prefix[-1]]  # noqa: E731
    kept = _Snapshots(snapshots, state, key)
    states: dict[tuple, TrainState] = {(): state}
    stages: dict[tuple, tuple[Stage, ...]] = {(): ()}
    for order in orders:
        for length in range(1, len(order) + 1):
            prefix, parent = tuple(order[:length]), tuple(order[: length - 1])
            if prefix in states:
                continue
            stage = stage_of(prefix)
            report = callback and functools.partial(callback, prefix)
            states[prefix], _ = kept.run(
                stages[parent], stage, prefix, states[parent], shared, report
            )
            stages[prefix] = (*stages[parent], stage)
    return states


def unfreezing(stage: Stage, patterns: Iterable[tree.Pattern]) -> list[Stage]:
    """Progressive unfreezing: stage i trains all parameters that the first i + 1 patterns select.

    Args:
        stage: what every stage does, apart from its name (`name.0`, `name.1`, ...) and `trainable`.
        patterns: what each stage adds to the trainable part.
    """
    stages: list[Stage] = []
    thawed: tuple[str, ...] = ()
    for i, pattern in enumerate(patterns):
        thawed += (pattern,) if isinstance(pattern, str) else tuple(pattern)
        stages.append(dataclasses.replace(stage, name=f"{stage.name}.{i}", trainable=thawed))
    return stages


def of_members(stage: Stage, n_members: int) -> Stage:
    """The stage for several models at once, whose state has a leading axis [n_members].

    Every model draws its own batches, with the key folded by its number; what is in `shared`
    serves all. Start from `init_members`. A wrapper or an evaluation of the stage sees one model.

    Args:
        stage: what each of them does.
        n_members: how many there are.

    Raises:
        ValueError: the stage stops early, which is decided for one model.
    """
    if stage.stops:
        raise ValueError(f"Stage {stage.name}: stops cannot be decided for several models at once")
    check = stage.evaluate
    return dataclasses.replace(
        stage,
        data=_OfMembers(as_source(stage.data), n_members),
        optimizer=_optimizer_of_members(stage.optimizer),
        wrap=_wrap_of_members(stage.wrap, n_members),
        evaluate=None if check is None else _evaluate_of_members(check),
    )


# The same functions give the same functions, so that equal stages share their program.
@functools.lru_cache(maxsize=64)
def _wrap_of_members(wrap: Callable[[Step], Step] | None, n_members: int) -> Callable[[Step], Step]:
    def wrap_many(step: Step) -> Step:
        one = step if wrap is None else wrap(step)

        def many(state: Any, shared: Any, batch: Any, key: Key):
            own = jax.vmap(lambda i: fold(key, "member", i))(jnp.arange(n_members))
            return jax.vmap(one, in_axes=(0, None, 0, 0))(state, shared, batch, own)

        return many

    return wrap_many


@functools.lru_cache(maxsize=64)
def _optimizer_of_members(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.GradientTransformation(jax.vmap(optimizer.init), optimizer.update)


@functools.lru_cache(maxsize=64)
def _evaluate_of_members(check: Evaluate) -> Evaluate:
    return jax.vmap(check, in_axes=(0, None))


def init_members(params: tree.Tree, stats: tree.Tree | None = None) -> TrainState:
    """A state for stages `of_members`, from parameters with a leading axis."""
    n_members = jax.tree.leaves(params)[0].shape[0]
    return TrainState(params, (), stats or {}, jnp.zeros(n_members, jnp.int32), {})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _OfMembers:
    """A source whose rows and batches have a leading axis of members."""

    source: Any
    n_members: int = dataclasses.field(metadata={"static": True})

    def plan(self, key: Key, steps: jax.Array) -> Any:
        own = jax.vmap(lambda i: fold(key, "member", i))(jnp.arange(self.n_members))
        return jax.vmap(lambda key: self.source.plan(key, steps), out_axes=1)(own)

    def gather(self, row: Any, key: Key) -> Any:
        own = jax.vmap(lambda i: fold(key, "member", i))(jnp.arange(self.n_members))
        return jax.vmap(self.source.gather)(row, own)


def stage_key(stage: Stage, key: Key, before: tuple[str, ...], prefix: tuple) -> Key:
    """The key of a stage.

    Args:
        stage: the stage.
        key: the key of the whole run.
        before: names of the stages before it.
        prefix: the elements of the order up to this stage: names of stages in `run`.
    """
    if stage.seed_by == "prefix":
        return fold(key, "prefix", *map(str, prefix))
    return fold(key, "stage", stage.name, before.count(stage.name))


def programs(stage: Stage) -> tuple[Step, Evaluate | None]:
    """A stage's step and evaluation, for the trainable part.

    Both read `{"frozen": the frozen part, "shared": what the stage's own functions read}`. Stages
    of the same functions get the same ones.
    """
    return _programs(stage.objective, stage.optimizer, stage.wrap, stage.evaluate)


@functools.lru_cache(maxsize=64)  # the same functions give the same step, and jit its program
def _programs(objective, optimizer, wrap, evaluate) -> tuple[Step, Evaluate | None]:
    step = gradient_step(with_frozen(objective), optimizer)
    if evaluate is None:
        return (step if wrap is None else wrap(step)), None

    def evaluate_all(state: TrainState, shared: Any):
        params = tree.combine(state.params, shared["frozen"])
        return evaluate(dataclasses.replace(state, params=params), shared["shared"])

    return (step if wrap is None else wrap(step)), evaluate_all


def begin(stage: Stage, state: TrainState) -> tuple[TrainState, tree.Tree]:
    """A stage's first state, of the trainable part, and the frozen part."""
    trainable, frozen = tree.partition(state.params, tree.select(state.params, stage.trainable))
    opt_state = _optimizer_state(stage, state, trainable)
    return dataclasses.replace(state, params=trainable, opt_state=opt_state), frozen


def _optimizer_state(stage: Stage, state: TrainState, trainable: tree.Tree) -> Any:
    fresh = jax.eval_shape(stage.optimizer.init, trainable)
    if stage.optimizer_state == "fresh":
        return stage.optimizer.init(trainable)
    if jax.tree.structure(fresh) != jax.tree.structure(state.opt_state):
        raise ValueError(
            f"Stage {stage.name}: optimizer_state='carry', but the state before belongs to another "
            "optimizer or another trainable part; use 'fresh'"
        )
    return state.opt_state


class _Snapshots:
    """Runs stages, or reads the state after them from a folder, if there is one."""

    def __init__(self, folder: str | os.PathLike | None, state: TrainState, key: Key):
        self.folder = None if folder is None else Path(folder)
        self.key = key
        if folder is not None:
            bits = jax.random.key_data(key).ravel().tolist()
            self.origin = {"start": tree.digest(state), "key": bits}

    def run(
        self,
        done: tuple[Stage, ...],
        stage: Stage,
        prefix: tuple,
        state: TrainState,
        shared: Any,
        report: Callable[[int, int], None] | None = None,
    ) -> tuple[TrainState, loop.Result | None]:
        """The state after one more stage, and its result unless the state was read."""
        key = stage_key(stage, self.key, tuple(s.name for s in done), prefix)
        report = report or (lambda taken, total: None)
        if self.folder is None:
            tell = lambda progress: report(int(progress.done), stage.n_steps)  # noqa: E731
            return run_stage(stage, state, key, shared=shared, callback=tell)
        name = "+".join(map(str, prefix))
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"prefix {prefix!r} gives no file name; use letters, digits, '.', '_', '-'"
            )
        now = self.origin | {"prefix": [repr(element) for element in prefix]}
        now |= {"stages": [_described(s) for s in (*done, stage)]}
        path, partial = self.folder / name, self.folder / f"{name}.partial"
        if self._is_there(path, now):
            report(stage.n_steps, stage.n_steps)
            return self._read(path, stage, state), None
        resume = None
        if self._is_there(partial, now):
            resume = checkpoint.restore(partial, loop.start(begin(stage, state)[0], stage.stops))

        def keep(progress: loop.Progress) -> None:
            report(int(progress.done), stage.n_steps)
            if int(progress.done) < stage.n_steps:
                self._write(partial, progress, now)

        state, result = run_stage(stage, state, key, shared=shared, callback=keep, resume=resume)
        self._write(path, state, now)
        self._record(partial).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        return state, result

    def _record(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    def _write(self, path: Path, state: Any, now: dict[str, Any]) -> None:
        checkpoint.save(path, state)
        # Last: a snapshot without a record is not used.
        with replacing(self._record(path)) as file:
            file.write(json.dumps(now).encode())

    def _is_there(self, path: Path, now: dict[str, Any]) -> bool:
        if not (path.exists() and self._record(path).exists()):
            return False
        if json.loads(self._record(path).read_text()) != json.loads(json.dumps(now)):
            raise ValueError(
                f"snapshots: {path} comes from another start, key or other stages; "
                "choose another folder"
            )
        return True

    def _read(self, path: Path, stage: Stage, state: TrainState) -> TrainState:
        trainable, _ = tree.partition(state.params, tree.select(state.params, stage.trainable))
        opt_state = jax.eval_shape(stage.optimizer.init, trainable)
        return checkpoint.restore(path, dataclasses.replace(state, opt_state=opt_state))


def _described(stage: Stage) -> dict[str, Any]:
    """What a stage does, as far as it can be written down: not its functions and its data."""
    names = ("name", "n_steps", "trainable", "optimizer_state", "every", "block", "seed_by")
    described = {name: getattr(stage, name) for name in names}
    return described | {"stops": [dataclasses.asdict(stop) for stop in stage.stops]}
