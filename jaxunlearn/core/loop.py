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

from jaxunlearn.core._early_stop import EarlyStop, Tracker, restore_best, start_trackers, track
from jaxunlearn.core.checks import whole
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.mesh import split_batch
from jaxunlearn.core.sources import as_source, blocks_of
from jaxunlearn.core.step import Metrics, Step, TrainState

__all__ = [
    "EarlyStop",
    "Progress",
    "Result",
    "Tracker",
    "advance",
    "finish",
    "run",
    "scan",
    "start",
]

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
    block: int | None = None,
    callback: Callable[[Progress, Metrics, Metrics], None] | None = None,
    resume: Progress | None = None,
) -> Result:
    """Runs steps in compiled blocks; one program serves all blocks, the last short one included.

    The caller's `state` is copied once and stays valid; between blocks the buffers are donated.
    Cutting the run into blocks, interrupting and resuming it gives the same bits.

    Args:
        step: a step on a `TrainState`.
        state: where to start.
        shared: what the steps read and do not change; never donated.
        data: a source (see `core.sources`).
        key: a typed key.
        n_steps: the largest number of steps.
        evaluate: `evaluate(state, shared) -> metrics`, traced, called after every `every` steps.
        every: steps between two checks; `n_steps` and `block` must be multiples of it.
        stops: early stopping on metrics of `evaluate`.
        block: steps of one compiled call; by default all of them. `HostBlocks` have their own.
        callback: called between blocks with the progress and the block's metrics and checks. The
            next block takes the progress's buffers: copy what is to outlive the call.
        resume: the progress to go on from, in place of `state`.

    Raises:
        ValueError: lengths that do not fit, an unknown metric, overlapping restore patterns, blocks
            of the host that end too early.
    """
    block = n_steps if block is None else min(block, n_steps)
    _check_lengths(n_steps, every, block, stops, evaluate)
    progress = resume if resume is not None else start(state, stops)
    progress = jax.tree.map(jnp.copy, progress)
    next_block = functools.partial(
        advance, step=step, evaluate=evaluate, every=every, stops=tuple(stops)
    )
    history: list[tuple[Metrics, Metrics]] = []
    taken = 0 if resume is None else int(progress.done)
    blocks = blocks_of(data, block, taken, every)
    while taken < n_steps and (taken == 0 or not bool(progress.stopped)):
        source, size = next(blocks, (None, 0))
        if source is None:
            raise ValueError(f"data: the blocks ended after step {taken} of {n_steps}")
        progress, metrics, checks = next_block(progress, shared, source, key, n_steps, block=size)
        if any(isinstance(x, Tracer) for x in (progress.done, progress.stopped)):
            # Inside jit or vmap the host cannot look, and one block leaves nothing to decide.
            if size != n_steps:
                raise ValueError(f"block is {block}; inside a traced function it must be n_steps")
            return _result(progress, metrics, checks)
        now = int(progress.done)
        history.append(_trim(metrics, checks, now - taken, every))
        taken = now
        if callback is not None:
            callback(progress, *history[-1])
    return _result(progress, *_concatenate(history))


def start(state: TrainState, stops: tuple[EarlyStop, ...] = ()) -> Progress:
    """The progress of a run that has not begun; also what to restore a checkpoint like."""
    trackers = start_trackers(stops, state)
    return Progress(state, jnp.zeros((), jnp.int32), trackers, jnp.zeros((), bool))


@functools.partial(
    jax.jit, static_argnames=("step", "evaluate", "every", "stops", "block"), donate_argnums=0
)
def advance(
    progress: Progress,
    shared: Any,
    source: Any,
    key: Key,
    limit: int,
    *,
    step: Step,
    evaluate: Evaluate | None,
    every: int,
    stops: tuple[EarlyStop, ...],
    block: int,
) -> tuple[Progress, Metrics, Metrics]:
    """At most `block` steps, fewer at the limit or when stopped: one compiled call of `run`.

    Args:
        progress: where the run stands; donated.
        shared: see `run`.
        source: on the device, with `plan` and `gather`.
        key: see `run`.
        limit: steps of the whole run.
        step: see `run`, and likewise the others.
        evaluate: after every `every` steps.
        every: divides `block`.
        stops: those of `progress`.
        block: steps.

    Returns:
        The progress, metrics with a leading axis `block`, and checks with one of `block // every`;
        those of steps that were not taken are NaN (0 for integers).
    """
    n_checks = block // every
    numbers = progress.done + jnp.arange(block, dtype=jnp.int32)
    reads = (shared, source, key, numbers, source.plan(fold(key, "data"), numbers))

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
    def stretch(progress: Progress, check: jax.Array, reads: Any):
        """`every` steps and one check."""
        shared, source, key, numbers, rows = reads
        xs = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, check * every, every), (numbers, rows)
        )
        state, metrics = jax.lax.scan(_body(step, shared, source, key), progress.state, xs)
        values = {} if evaluate is None else evaluate(state, shared)
        number = (progress.done // every).astype(jnp.int32)
        trackers = tuple(
            track(tracker, stop, values, number, state)
            for tracker, stop in zip(progress.trackers, stops, strict=True)
        )
        stopped = jnp.zeros((), bool)
        for tracker, stop in zip(trackers, stops, strict=True):
            stopped = stopped | (tracker.wait >= stop.patience)
        return Progress(state, progress.done + every, trackers, stopped), metrics, values

    _, *shapes = jax.eval_shape(stretch, progress, jnp.zeros((), jnp.int32), reads)
    empty = jax.tree.map(lambda s: _empty((n_checks, *s.shape), s.dtype), tuple(shapes))

    def unfinished(carry):
        progress, check, _ = carry
        return (check < n_checks) & (progress.done < limit) & ~progress.stopped

    def go_on(carry):
        progress, check, buffers = carry
        progress, *values = stretch(progress, check, reads)
        buffers = jax.tree.map(lambda b, v: b.at[check].set(v), buffers, tuple(values))
        return progress, check + 1, buffers

    progress, _, (metrics, checks) = jax.lax.while_loop(
        unfinished, go_on, (progress, jnp.zeros((), jnp.int32), empty)
    )
    metrics = jax.tree.map(lambda x: x.reshape(block, *x.shape[2:]), metrics)
    return progress, metrics, checks


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


def _result(progress: Progress, metrics: Metrics, checks: Metrics) -> Result:
    state, best_checks = finish(progress)
    return Result(state, metrics, checks, best_checks)


def _empty(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Steps that were not taken are NaN (0 for integers)."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.full(shape, jnp.nan, dtype) if inexact else jnp.zeros(shape, dtype)


def _trim(metrics: Metrics, checks: Metrics, taken: int, every: int) -> tuple[Metrics, Metrics]:
    return (
        jax.tree.map(lambda x: x[:taken], metrics),
        jax.tree.map(lambda x: x[: taken // every], checks),
    )


def _concatenate(history: list[tuple[Metrics, Metrics]]) -> tuple[Metrics, Metrics]:
    if not history:
        return {}, {}
    metrics, checks = jax.tree.map(lambda *xs: jnp.concatenate(xs), *history)
    return metrics, checks


def _check_lengths(n_steps, every, block, stops, evaluate) -> None:
    whole("n_steps", n_steps)
    whole("every", every)
    if n_steps % every or block % every:
        raise ValueError(
            f"n_steps is {n_steps} and block is {block}; both must be multiples of every={every}"
        )
    if stops and evaluate is None:
        raise ValueError("stops: early stopping needs evaluate=..., which computes its metric")
