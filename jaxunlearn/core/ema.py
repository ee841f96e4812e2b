"""Moving averages of parameters, as a wrapper of a step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import tree
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import Metrics, Step, TrainState
from jaxunlearn.core.tree import Tree


def average(old: Tree, new: Tree, decay: float | jax.Array) -> Tree:
    """decay * old + (1 - decay) * new, leaf by leaf; where `new` has a hole, `old` stays."""
    mean = lambda n, o: o if n is None else decay * o + (1 - decay) * n  # noqa: E731
    return tree.map_holes(mean, new, old)


def start(state: TrainState) -> TrainState:
    """Adds `extra["ema"]`, a copy of the parameters, as the average before the first step."""
    ema = jax.tree.map(jnp.copy, state.params)
    return dataclasses.replace(state, extra={**state.extra, "ema": ema})


def with_ema(step: Step, decay: float | Callable[[jax.Array], jax.Array]) -> Step:
    """After each step, updates `extra["ema"]` (made by `start`) with the new parameters.

    Args:
        step: a step on a `TrainState`.
        decay: a number in [0, 1], or a function of the count of steps taken, such as
            `lambda t: jnp.minimum(1 - 1 / (t + 1), 0.999)`.

    Raises:
        ValueError: a constant decay outside [0, 1].
    """
    if not callable(decay) and not 0 <= decay <= 1:
        raise ValueError(f"with_ema: decay is {decay}; it must lie in [0, 1]")

    def averaged(state: TrainState, shared: Any, batch: Any, key: Key) -> tuple[Any, Metrics]:
        state, metrics = step(state, shared, batch, key)
        now = decay(state.step) if callable(decay) else decay
        ema = average(state.extra["ema"], state.params, now)
        return dataclasses.replace(state, extra={**state.extra, "ema": ema}), metrics

    return averaged
