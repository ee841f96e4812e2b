"""Early stopping inside a compiled loop; public through `core.loop`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, tree
from jaxunlearn.core.step import Metrics, TrainState
from jaxunlearn.core.tree import Tree


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """Stops when a metric has not improved for `patience` checks, and restores the best weights.

    With several in one run, any one of them stops it and each restores its own weights, which may
    come from different checks. The semantics are those of Keras' EarlyStopping with
    `restore_best_weights=True`, which restores at the end of a run that was not stopped as well.

    Attributes:
        metric: name of a metric that `evaluate` returns.
        patience: checks without improvement before the run stops, at least 1.
        min_delta: a change counts as improvement only if it is larger than this.
        start: number of first checks that are ignored.
        restore: pattern of the parameters (and statistics) to restore; `None` restores nothing.
        mode: whether the metric is to become small ("min") or large ("max").
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    start: int = 0
    restore: tree.Pattern | None = ".*"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self):
        if not isinstance(self.metric, str):
            raise ValueError(f"EarlyStop: metric is {self.metric!r}; a name is needed")
        if self.restore is not None:
            tree.check_patterns("EarlyStop: restore", self.restore)
        checks.whole("EarlyStop: patience", self.patience)
        checks.at_least("EarlyStop: min_delta", self.min_delta, 0)
        checks.whole("EarlyStop: start", self.start, 0)
        checks.one_of("EarlyStop: mode", self.mode, ("min", "max"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tracker:
    """What an `EarlyStop` remembers: `best` value (as a loss), its check (-1: none), weights."""

    best: jax.Array
    best_check: jax.Array
    wait: jax.Array
    weights: Tree


def start_trackers(stops: tuple[EarlyStop, ...], state: TrainState) -> tuple[Tracker, ...]:
    """Trackers that have seen no check yet; raises if two stops would restore the same leaf."""
    trackers = tuple(
        Tracker(
            jnp.full((), jnp.inf),
            jnp.full((), -1, jnp.int32),
            jnp.zeros((), jnp.int32),
            _restorable(stop, state),
        )
        for stop in stops
    )
    chosen = [name for tracker in trackers for name in tree.named(tracker.weights)]
    if len(set(chosen)) < len(chosen):
        twice = sorted({name for name in chosen if chosen.count(name) > 1})
        raise ValueError(f"stops: more than one EarlyStop restores {', '.join(twice)}")
    return trackers


def restore_best(tracker: Tracker, state: TrainState) -> TrainState:
    """The state with the tracker's weights, if it has seen a check that counts."""
    if not tracker.weights:
        return state
    now = {"params": state.params, "stats": state.stats}
    seen = tracker.best_check >= 0
    choose = lambda kept, leaf: leaf if kept is None else jnp.where(seen, kept, leaf)  # noqa: E731
    best = tree.map_holes(choose, tracker.weights, now)
    return dataclasses.replace(state, params=best["params"], stats=best["stats"])


def _restorable(stop: EarlyStop, state: TrainState) -> Tree:
    if stop.restore is None:
        return {}
    both = {"params": state.params, "stats": state.stats}
    # Statistics follow the parameters they belong to, but a network may have none.
    tree.select(state.params, stop.restore)
    flags = tree.selected([name.partition("/")[2] for name in tree.named(both)], stop.restore)
    mask = jax.tree.unflatten(jax.tree.structure(both), flags)
    return tree.partition(both, mask)[0]


def track(
    tracker: Tracker, stop: EarlyStop, values: Metrics, number: jax.Array, state: TrainState
) -> Tracker:
    """The tracker after check `number`, whose metrics are `values`."""
    if stop.metric not in values:
        raise ValueError(
            f"EarlyStop: metric {stop.metric!r} is not among those that evaluate returns: "
            f"{', '.join(values)}"
        )
    value = values[stop.metric].astype(jnp.float32) * (1.0 if stop.mode == "min" else -1.0)
    counts = number >= stop.start
    # As in Keras the first check counts whatever it says: a NaN there is never improved on.
    better = counts & ((tracker.best_check < 0) | (value < tracker.best - stop.min_delta))
    now = {"params": state.params, "stats": state.stats}
    newer = lambda old, new: None if old is None else jnp.where(better, new, old)  # noqa: E731
    return Tracker(
        jnp.where(better, value, tracker.best),
        jnp.where(better, number, tracker.best_check),
        jnp.where(better, 0, tracker.wait + counts.astype(jnp.int32)),
        tree.map_holes(newer, tracker.weights, now if tracker.weights else {}),
    )
