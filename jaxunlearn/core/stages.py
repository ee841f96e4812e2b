"""Steps over stages: training in stages, progressive unfreezing, orders with shared prefixes."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import checkpoint, checks, configuration, folders, loop, records, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.loop import Checks, EarlyStop, Evaluate
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.step import Objective, Step, TrainState, gradient_step, with_frozen

Report = Callable[[int, int], None]  # steps taken, steps in all


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
        every: steps between evaluations, and at most before the last.
        stops: early stopping.
        check_start: whether to evaluate before the first step, too.
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
    check_start: bool = False
    block: int | None = None
    seed_by: Literal["occurrence", "prefix"] = "occurrence"

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"Stage: name is {self.name!r}; use letters, digits, '.', '_', '-'")
        where = f"Stage {self.name}:"
        checks.one_of(f"{where} optimizer_state", self.optimizer_state, ("fresh", "carry"))
        checks.one_of(f"{where} seed_by", self.seed_by, ("occurrence", "prefix"))
        tree.check_patterns(f"{where} trainable", self.trainable)
        for name in ("init", "update"):
            if not callable(getattr(self.optimizer, name, None)):
                raise ValueError(
                    f"{where} optimizer is {self.optimizer!r}; an optax optimizer is needed"
                )
        for name in ("objective", "wrap", "evaluate"):
            function = getattr(self, name)
            if not callable(function) and (function is not None or name == "objective"):
                raise ValueError(f"{where} {name} is {function!r}; a function is needed")
        try:
            Checks(self.evaluate, self.every, self.stops, self.check_start).block(
                self.n_steps, self.block
            )
        except ValueError as error:
            raise ValueError(f"{where} {error}") from None


class Outcome(NamedTuple):
    """What stages leave behind: the state with all parameters, and each stage's `loop.Result`."""

    state: TrainState
    history: tuple[loop.Result, ...]


def run_stage(
    stage: Stage,
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    report: Report | None = None,
    point: ResumePoint | None = None,
) -> tuple[TrainState, loop.Result]:
    """Runs one stage; traced, too.

    Args:
        stage: the stage.
        state: a state with all parameters; its `opt_state` matters to a "carry" stage only.
        key: the stage's own key, see `stage_key`.
        shared: what the objective reads and does not change.
        report: called after every block with the steps taken and those in all.
        point: where the progress is kept after every block but the last; one that is there is gone
            on from, and the result then has no metrics from before it.

    Returns:
        The state with all parameters, and the loop's result for the trainable part.
    """
    start, frozen = begin(stage, state)
    step, evaluate = programs(stage)
    kept = point and point.read(loop.start(start, stage.stops))

    def after_block(progress: loop.Progress, *_: Any) -> None:
        done = int(progress.done)
        if report is not None:
            report(done, stage.n_steps)
        if point is not None and done < stage.n_steps:
            point.write(progress)

    reads = {"frozen": frozen, "shared": shared}
    how = {name: getattr(stage, name) for name in ("every", "stops", "check_start", "block")}
    how |= {"evaluate": evaluate, "callback": after_block, "resume": kept and kept[0]}
    result = loop.run(step, start, reads, stage.data, key, stage.n_steps, **how)
    params = tree.combine(result.state.params, frozen)
    return dataclasses.replace(result.state, params=params), result


class Runner(NamedTuple):
    """How stages are run: of one model, or of several at once (`members.runner`).

    Attributes:
        begin: as `begin` in this file.
        run: as `run_stage`.
    """

    begin: Callable[[Stage, TrainState], tuple[TrainState, tree.Tree]]
    run: Callable[..., tuple[TrainState, Any]]


def run(
    stages: Iterable[Stage],
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    snapshots: str | os.PathLike | None = None,
    runner: Runner | None = None,
) -> Outcome:
    """Runs stages in order.

    Args:
        stages: the stages.
        state: initial state, with all parameters.
        key: a typed key; each stage derives its own.
        shared: what the objectives read and do not change.
        snapshots: a folder for the state after each stage, and after each block of one. Stages
            found there are not run again (the history has no entry for them), and the result has
            the same bits.
        runner: by default that of one model.

    Raises:
        ValueError: a snapshot comes from another start, key, configuration, or other stages.
        DamagedError: a snapshot is damaged; its file is named.
    """
    kept = _Snapshots(snapshots, state, key, runner)
    done: tuple[Stage, ...] = ()
    history = []
    for stage in stages:
        _check_stage("stages has", stage)
        done = (*done, stage)
        state, result = kept.run(done, tuple(s.name for s in done), state, shared)
        history += [] if result is None else [result]
    return Outcome(state, tuple(history))


def run_orders(
    stage_of: Callable[[tuple], Stage] | Mapping[Any, Stage],
    orders: Iterable[tuple],
    state: TrainState,
    key: Key,
    *,
    shared: Any = None,
    snapshots: str | os.PathLike | None = None,
    runner: Runner | None = None,
    callback: Callable[[tuple, int, int], None] | None = None,
) -> dict[tuple, TrainState]:
    """Trains every requested order, running each distinct prefix once.

    Equal to running each order on its own, bit for bit: a stage's randomness depends on its name
    and prefix, never on when it runs.

    Args:
        stage_of: `stage_of(prefix) -> Stage`, the stage of the prefix's last element; or a mapping
            from element to stage.
        orders: tuples of elements.
        state: initial state of every order, with all parameters.
        key: a typed key.
        shared: what the objectives read and do not change.
        snapshots: a folder for the state after each prefix, to resume from; see `run`.
        runner: by default that of one model.
        callback: `callback(prefix, steps taken, steps in all)`, called after every block of a
            prefix's last stage, and once if its state was read from `snapshots`.

    Returns:
        The state after every prefix of every order, by prefix; `()` is the start.

    Raises:
        ValueError: no orders, one that is no sequence, or an element without a stage, before
            anything runs; a snapshot as in `run`.
    """
    orders = _checked(orders, stage_of)
    kept = _Snapshots(snapshots, state, key, runner)
    states: dict[tuple, TrainState] = {(): state}
    stages: dict[tuple, tuple[Stage, ...]] = {(): ()}
    for order in orders:
        for prefix in (order[: i + 1] for i in range(len(order))):
            if prefix in states:
                continue
            parent, report = prefix[:-1], callback and functools.partial(callback, prefix)
            stage = stage_of[prefix[-1]] if isinstance(stage_of, Mapping) else stage_of(prefix)
            _check_stage(f"stage_of gives {prefix!r}", stage)
            stages[prefix] = (*stages[parent], stage)
            states[prefix], _ = kept.run(stages[prefix], prefix, states[parent], shared, report)
    return states


def _checked(orders: Any, stage_of: Any) -> list[tuple]:
    """The orders, each a tuple of elements that have a stage."""
    if isinstance(stage_of, Mapping):
        for element, stage in stage_of.items():
            _check_stage(f"stage_of gives {element!r}", stage)
    elif not callable(stage_of):
        raise ValueError(f"stage_of is {stage_of!r}; a function or a mapping is needed")
    if not isinstance(orders, Iterable):
        raise ValueError(f"orders is {orders!r}; tuples of elements are needed")
    orders = list(orders)
    if not orders:
        raise ValueError("orders is empty; at least one is needed")
    for order in orders:
        if isinstance(order, (str, bytes)) or not isinstance(order, Sequence | np.ndarray):
            raise ValueError(f"orders has {order!r}; tuples of elements are needed")
        for element in order:
            if not isinstance(element, Hashable):
                raise ValueError(f"orders has {element!r}; names or numbers are needed")
            if isinstance(stage_of, Mapping) and element not in stage_of:
                known = ", ".join(map(repr, stage_of))
                raise ValueError(f"orders has {element!r}; stage_of has stages for {known}")
    return [tuple(order) for order in orders]


def _check_stage(what: str, stage: Any) -> None:
    if not isinstance(stage, Stage):
        raise ValueError(f"{what}: {stage!r}; a Stage is needed")


def _check_start(state: Any, key: Any) -> None:
    """Raises a ValueError for arguments that no stage can begin with."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state is a {type(state).__name__}; a TrainState is needed: `init(params)`"
        )
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise ValueError(f"key is {key!r}; a typed key is needed: `jax.random.key(seed)`")


def unfreezing(stage: Stage, patterns: Iterable[tree.Pattern]) -> list[Stage]:
    """Progressive unfreezing: stage i trains all parameters that the first i + 1 patterns select.

    Args:
        stage: what every stage does, apart from its name (`name.0`, `name.1`, ...) and `trainable`.
        patterns: the parameters that each stage adds to the trainable part.
    """
    stages: list[Stage] = []
    thawed: tuple[str, ...] = ()
    for i, pattern in enumerate(patterns):
        thawed += (pattern,) if isinstance(pattern, str) else tuple(pattern)
        stages.append(dataclasses.replace(stage, name=f"{stage.name}.{i}", trainable=thawed))
    return stages


def init(params: tree.Tree, stats: tree.Tree | None = None) -> TrainState:
    """A state before the first stage, which makes the optimizer's."""
    return TrainState(params, (), stats or {}, jnp.zeros((), jnp.int32), {})


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

    def evaluate_all(state: TrainState, shared: Any):
        params = tree.combine(state.params, shared["frozen"])
        return evaluate(dataclasses.replace(state, params=params), shared["shared"])

    return (step if wrap is None else wrap(step)), evaluate and evaluate_all


def begin(stage: Stage, state: TrainState) -> tuple[TrainState, tree.Tree]:
    """A stage's first state, of the trainable part, and the frozen part."""
    trainable, frozen = tree.partition(state.params, tree.select(state.params, stage.trainable))
    if stage.optimizer_state == "fresh":
        state = dataclasses.replace(state, opt_state=stage.optimizer.init(trainable))
    fresh = jax.eval_shape(stage.optimizer.init, trainable)
    if jax.tree.structure(fresh) != jax.tree.structure(state.opt_state):
        raise ValueError(
            f"Stage {stage.name}: optimizer_state='carry', but the state before belongs to another "
            "optimizer or another trainable part; use 'fresh'"
        )
    return dataclasses.replace(state, params=trainable), frozen


class _Snapshots:
    """Runs stages, or reads the state after them from a folder, if there is one."""

    def __init__(self, folder: Any, state: TrainState, key: Key, runner: Runner | None):
        _check_start(state, key)
        self.folder = None if folder is None else Path(folder)
        self.key, self.runner = key, runner or Runner(begin, run_stage)
        if self.folder is not None:
            folders.check_own(self.folder)
            bits = jax.random.key_data(key).ravel().tolist()
            self.origin = {"start": tree.digest(state), "key": bits}

    def run(
        self,
        stages: tuple[Stage, ...],
        prefix: tuple,
        state: TrainState,
        shared: Any,
        report: Report | None = None,
    ) -> tuple[TrainState, Any]:
        """The state after the last of the stages, and its result unless the state was read."""
        stage = stages[-1]
        key = stage_key(stage, self.key, tuple(s.name for s in stages[:-1]), prefix)
        if self.folder is None:
            return self.runner.run(stage, state, key, shared=shared, report=report)
        name = "+".join(map(str, prefix))
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"prefix {prefix!r} gives no file name; use letters, digits, '.', '_', '-'"
            )
        origin = self.origin | {"prefix": [repr(element) for element in prefix]}
        origin |= {"stages": [_described(s) for s in stages]}
        path, record = self.folder / name, self.folder / f"{name}.json"
        point = ResumePoint(self.folder / f"{name}.partial", origin)
        if path.exists() and record.exists():
            _check_origin(record, origin)
            if report is not None:
                report(stage.n_steps, stage.n_steps)
            begun, _ = jax.eval_shape(functools.partial(self.runner.begin, stage), state)
            like = dataclasses.replace(state, opt_state=begun.opt_state)
            state, result = checkpoint.restore(path, like), None
        else:
            how = {"shared": shared, "report": report, "point": point}
            state, result = self.runner.run(stage, state, key, **how)
            checkpoint.save(path, state)
            # Last: a snapshot without a record is not used.
            records.write_signed(record, origin | {"configuration": configuration.current()})
        point.drop()  # also what a kill left of it
        return state, result


def _check_origin(record: Path, origin: dict[str, Any]) -> None:
    """Raises a ValueError if a snapshot is of another run."""
    before, path = records.read_signed(record), record.with_suffix("")
    configuration.check(before.pop("configuration", None), str(path))
    if before != json.loads(json.dumps(origin)):
        raise ValueError(
            f"snapshots: {path} comes from another start, key or other stages; "
            "choose another folder"
        )


def _described(stage: Stage) -> dict[str, Any]:
    """What a stage does, as far as it can be written down: not its functions and its data."""
    names = ("name", "n_steps", "trainable", "optimizer_state", "every", "block", "seed_by")
    described = {name: getattr(stage, name) for name in names}
    described |= {"check_start": True} if stage.check_start else {}
    return described | {"stops": [dataclasses.asdict(stop) for stop in stage.stops]}
