"""Steps over time: many steps as one compiled program, early stopping inside it.

A step reads its data from a source, see `core.sources`. The key of step t is `fold(key, "step", t)`
and that of its data `fold(key, "data")`: both depend on the step's number in the stage, never on
how a run was cut into blocks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxunlearn.core import tree
from jaxunlearn.core._early_stop import EarlyStop, Tracker, restore_best, start_trackers, track
from jaxunlearn.core.checks import whole
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.mesh import split_batch
from jaxunlearn.core.sources import as_source, blocks_of
from jaxunlearn.core.step import Metrics, Step, TrainState

__all__ = ["Checks", "EarlyStop", "Progress", "Result", "Tracker"]
__all__ += ["advance", "finish", "run", "scan", "start"]

Evaluate = Callable[[TrainState, Any], Metrics]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Everything a run needs to go on: save it in a callback, pass it as `resume`.

    Attributes:
        state: the training state.
        done: steps taken, int32 [].
        trackers: one for each `EarlyStop`.
        stopped: whether one of them has stopped the run, bool [].
    """

    state: Any
    done: jax.Array
    trackers: tuple[Tracker, ...]
    stopped: jax.Array


@dataclasses.dataclass(frozen=True)
class Checks:
    """When a run is evaluated, and what that decides.

    Attributes:
        evaluate: `evaluate(state, shared) -> metrics`, traced.
        every: steps between two checks; there is one after the last step too.
        stops: early stopping on metrics of `evaluate`.
        at_start: whether there is a check before the first step.
    """

    evaluate: Evaluate | None = None
    every: int = 1
    stops: tuple[EarlyStop, ...] = ()
    at_start: bool = False

    def __post_init__(self):
        whole("every", self.every)
        stops = self.stops
        if not isinstance(stops, tuple | list) or not all(isinstance(s, EarlyStop) for s in stops):
            raise ValueError(f"stops is {stops!r}; a tuple of EarlyStop is needed")
        if self.evaluate is None and (self.stops or self.at_start):
            name = "stops: early stopping" if self.stops else "at_start: a check"
            raise ValueError(f"{name} needs evaluate=..., which computes its metric")

    def block(self, n_steps: int, block: int | None) -> int:
        """Steps of one compiled call, by default all of them."""
        block = min(whole("n_steps", n_steps), n_steps if block is None else whole("block", block))
        if block < n_steps and block % self.every:
            raise ValueError(
                f"n_steps is {n_steps} and block is {block}; block must be n_steps or a multiple "
                f"of every={self.every}"
            )
        return block

    def most(self, n_steps: int) -> int:
        """The most checks in so many steps from the start."""
        return -(-n_steps // self.every) + self.at_start


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
        state: the final state, with the best weights restored.
        metrics: per step, leading axis steps taken.
        checks: per check what `evaluate` returned, leading axis checks made.
        best_checks: for each `EarlyStop`, the check whose weights it restored (-1: none).
    """

    state: Any
    metrics: Metrics
    checks: Metrics
    best_checks: tuple[Any, ...]


def scan(
    step: Step, state: Any, shared: Any, data: Any, key: Key, n_steps: int, *, first: Any = 0
) -> tuple[Any, Metrics]:
    """`n_steps` steps as one `lax.scan`: pure, so it can be jitted, vmapped and differentiated.

    Args:
        step: `step(state, shared, batch, key) -> (state, metrics)`.
        state: any pytree.
        shared: what the steps read and do not change.
        data: a source (see `core.sources`), not `HostBlocks`.
        key: a typed key.
        n_steps: number of steps.
        first: number of the first step; a traced integer is fine.

    Returns:
        The state and the metrics of every step, leading axis `n_steps`.
    """
    source = as_source(data)
    numbers = first + jnp.arange(n_steps, dtype=jnp.int32)
    rows = source.plan(fold(key, "data"), numbers)
    return jax.lax.scan(_body(step, shared, source, key), state, (numbers, rows))


def run(
    step: Step,
    state: TrainState,
    shared: Any,
    data: Any,
    key: Key,
    n_steps: int,
    *,
    evaluate: Evaluate | None = None,
    every: int = 1,
    stops: tuple[EarlyStop, ...] = (),
    check_start: bool = False,
    block: int | None = None,
    callback: Callable[[Progress, Metrics, Metrics], None] | None = None,
    resume: Progress | None = None,
) -> Result:
    """Runs steps in compiled blocks; one program serves all blocks, the last short one included.

    The caller's `state` is copied once and stays valid; between blocks the buffers are donated.
    Cutting the run into blocks, interrupting and resuming it gives the same bits.

    Args:
        step: a step on a `TrainState`.
        state: initial state.
        shared: what the steps read and do not change; never donated.
        data: a source (see `core.sources`).
        key: a typed key.
        n_steps: the largest number of steps.
        evaluate: see `Checks`.
        every: steps between two checks, a divisor of `block`; on the device the last may be fewer.
        stops: see `Checks`.
        check_start: see `Checks.at_start`.
        block: steps of one compiled call; by default all of them. `HostBlocks` have their own.
        callback: called between blocks with the progress and the block's metrics and checks. The
            next block takes the progress's buffers: copy what is to outlive the call.
        resume: the progress to go on from, in place of `state`.

    Raises:
        ValueError: lengths that do not fit, an unknown metric, overlapping restore patterns, blocks
            of the host that end too early.
    """
    checks = Checks(evaluate, every, tuple(stops), check_start)
    progress = jax.tree.map(jnp.copy, start(state, stops) if resume is None else resume)
    taken, stopped = (int(resume.done), bool(resume.stopped)) if resume else (0, False)
    history, blocks = [], blocks_of(data, checks.block(n_steps, block), taken, every, n_steps)
    while taken < n_steps and not stopped:
        source, size = next(blocks)
        how = {"step": step, "checks": checks, "block": size, "ragged": n_steps % every > 0}
        progress, metrics, values = advance(progress, shared, source, key, n_steps, **how)
        if isinstance(progress.done, Tracer) or isinstance(progress.stopped, Tracer):
            # Inside jit or vmap the host cannot look, and one block leaves nothing to decide.
            if size != n_steps:
                raise ValueError(f"block is {size}; inside a traced function it must be n_steps")
            return _result(progress, [(metrics, values)])
        before, taken, stopped = taken, int(progress.done), bool(progress.stopped)
        made = checks.most(taken - before) - (check_start and before > 0)
        history.append((tree.take(metrics, slice(taken - before)), tree.take(values, slice(made))))
        if callback is not None:
            callback(progress, *history[-1])
    return _result(progress, history)


def _result(progress: Progress, history: list[tuple[Metrics, Metrics]]) -> Result:
    state, best_checks = finish(progress)
    join = functools.partial(jax.tree.map, lambda *xs: jnp.concatenate(xs))
    metrics, values = join(*history) if history else ({}, {})
    return Result(state, metrics, values, best_checks)


def start(state: TrainState, stops: tuple[EarlyStop, ...] = ()) -> Progress:
    """The progress of a run that has not begun; also what to restore a checkpoint like."""
    trackers = start_trackers(stops, state)
    return Progress(state, jnp.zeros((), jnp.int32), trackers, jnp.zeros((), bool))


@functools.partial(jax.jit, static_argnames=("step", "checks", "block", "ragged"), donate_argnums=0)
def advance(
    progress: Progress,
    shared: Any,
    source: Any,
    key: Key,
    limit: int,
    *,
    step: Step,
    checks: Checks,
    block: int,
    ragged: bool,
) -> tuple[Progress, Metrics, Metrics]:
    """At most `block` steps, fewer at the limit or when stopped: one compiled call of `run`.

    Args:
        progress: progress so far; donated.
        shared: see `run`.
        source: on the device, with `plan` and `gather`.
        key: see `run`.
        limit: steps of the whole run.
        step: see `run`.
        checks: when to evaluate; their `stops` are those of `progress`.
        block: steps.
        ragged: whether the run's last stretch has fewer than `checks.every` steps.

    Returns:
        The progress, metrics with a leading axis `block`, and checks with one of
        `checks.most(block)`; those of steps that were not taken are NaN (0 for integers).
    """
    n_checks, first = checks.most(block), progress.done
    length = -(-block // checks.every) * checks.every
    numbers = first + jnp.arange(length, dtype=jnp.int32)
    rows = source.plan(fold(key, "data"), numbers)
    reads = (shared, source, key, limit, first, (numbers, rows))
    # Traced once, for its shapes and for the loop.
    stretch = jax.jit(functools.partial(_stretch, step, checks, ragged), inline=True)
    _, *shapes = jax.eval_shape(stretch, progress, jnp.zeros((), jnp.int32), reads)
    metrics = jax.tree.map(lambda s: _empty((length, *s.shape[1:]), s.dtype), shapes[0])
    values = jax.tree.map(lambda s: _empty((n_checks, *s.shape), s.dtype), shapes[1])

    def unfinished(carry):
        progress, *_ = carry
        return (progress.done < jnp.minimum(first + block, limit)) & ~progress.stopped

    def go_on(carry):
        progress, check, (metrics, values) = carry
        at = progress.done - first
        progress, new_metrics, new_values = stretch(progress, check, reads)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
        metrics = jax.tree.map(put, metrics, new_metrics)
        values = jax.tree.map(lambda b, v: b.at[check].set(v), values, new_values)
        return progress, check + 1, (metrics, values)

    start = (progress, jnp.zeros((), jnp.int32), (metrics, values))
    progress, _, (metrics, values) = jax.lax.while_loop(unfinished, go_on, start)
    return progress, jax.tree.map(lambda x: x[:block], metrics), values


def _stretch(
    step: Step, checks: Checks, ragged: bool, progress: Progress, check: jax.Array, reads: Any
) -> tuple[Progress, Metrics, Metrics]:
    """Steps up to a check, and the check."""
    shared, source, key, limit, first, xs = reads
    every, done = checks.every, progress.done
    xs = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, done - first, every), xs)
    body, number, taken = _body(step, shared, source, key), done // every, every
    if ragged or checks.at_start:
        taken = jnp.minimum(every, limit - done)
        if checks.at_start:
            is_start = (done == 0) & (check == 0)
            taken, number = jnp.where(is_start, 0, taken), number + 1 - is_start
        state, metrics = _some_steps(body, progress.state, xs, taken)
    else:
        state, metrics = jax.lax.scan(body, progress.state, xs)
    values = {} if checks.evaluate is None else checks.evaluate(state, shared)
    number = number.astype(jnp.int32)
    trackers = tuple(
        track(tracker, stop, values, number, state)
        for tracker, stop in zip(progress.trackers, checks.stops, strict=True)
    )
    pairs = zip(trackers, checks.stops, strict=True)
    waited = (tracker.wait >= stop.patience for tracker, stop in pairs)
    stopped = functools.reduce(jnp.logical_or, waited, jnp.zeros((), bool))
    done = (done + taken).astype(jnp.int32)
    return Progress(state, done, trackers, stopped), metrics, values


def _some_steps(body: Any, state: Any, xs: Any, taken: jax.Array) -> tuple[Any, Metrics]:
    """The first `taken` of some steps; metrics of all, NaN where none was taken."""
    n_steps = len(jax.tree.leaves(xs)[0])
    _, shapes = jax.eval_shape(body, state, tree.take(xs, 0))
    empty = jax.tree.map(lambda s: _empty((n_steps, *s.shape), s.dtype), shapes)

    def take(i: jax.Array, carry: Any) -> Any:
        state, metrics = carry
        state, new = body(state, tree.take(xs, i))
        return state, jax.tree.map(lambda m, v: m.at[i].set(v), metrics, new)

    return jax.lax.fori_loop(0, taken, take, (state, empty))


def _body(step: Step, shared: Any, source: Any, key: Key):
    def body(state, xs):
        number, row = xs
        step_key = fold(key, "step", number)
        batch = split_batch(source.gather(row, fold(step_key, "data")))
        return step(state, shared, batch, step_key)

    return body


def finish(progress: Progress) -> tuple[TrainState, tuple[jax.Array, ...]]:
    """The state at the end of a run, with the best weights restored, and the checks they are of."""
    state = progress.state
    for tracker in progress.trackers:
        state = restore_best(tracker, state)
    return state, tuple(tracker.best_check for tracker in progress.trackers)


def _empty(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Steps that were not taken are NaN (0 for integers)."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.full(shape, jnp.nan, dtype) if inexact else jnp.zeros(shape, dtype)
