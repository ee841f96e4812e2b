"""Arguments of the linear theory: float64 throughout, and clear errors before anything runs."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

Array = jax.Array | np.ndarray
_P = ParamSpec("_P")
_R = TypeVar("_R")


def float64(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a function in float64 and hands its results over in float64."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **kwargs)
        if not known(*jax.tree.leaves((args, kwargs))):
            raise ValueError(
                f"{function.__name__}: its arguments were rounded to float32 by jit, vmap or grad; "
                "transform it under jax.enable_x64(True)"
            )
        with jax.enable_x64(True):
            return jax.device_get(function(*args, **kwargs))

    return wrapped


def known(*values: object) -> bool:
    """Whether values can be looked at: not while a transformation is traced."""
    return not any(isinstance(value, Tracer) for value in values)


def vectors(name: str, value: ArrayLike) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim < 1:
        raise ValueError(f"{name} is a number; it must be [..., d]")
    return value


def vector(name: str, value: ArrayLike) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim != 1:
        raise ValueError(f"{name} is {list(value.shape)}; it must be one model, [d]")
    return value


def rows(name: str, value: ArrayLike, d: int) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim != 2 or value.shape[1] != d or not len(value):
        raise ValueError(f"{name} is {list(value.shape)}; it must be one or more rows, [n, {d}]")
    return value


def labelled(
    x_name: str, x: ArrayLike, y_name: str, y: ArrayLike, d: int
) -> tuple[jax.Array, jax.Array]:
    x, y = rows(x_name, x, d), jnp.asarray(y, jnp.float64)
    if y.shape != (len(x),):
        raise ValueError(f"{x_name} is {list(x.shape)} and {y_name} {list(y.shape)}, not [n]")
    return x, y


def positive(name: str, value: ArrayLike) -> jax.Array:
    if known(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} is {value}; it must be positive")
    return jnp.asarray(value, jnp.float64)


def not_negative(name: str, value: ArrayLike) -> jax.Array:
    if known(value) and not np.all(np.asarray(value) >= 0):
        raise ValueError(f"{name} is {value}; it must be 0 or positive")
    return jnp.asarray(value, jnp.float64)


def whole_steps(steps: ArrayLike) -> jax.Array:
    if known(steps):
        numbers = np.asarray(steps)
        if not np.all((numbers >= 0) & (numbers == np.floor(numbers))):
            raise ValueError(f"steps is {steps}; whole numbers from 0 on are needed")
    return jnp.asarray(steps, jnp.float64)


def problem(
    theta_a: ArrayLike, theta_b: ArrayLike, x_forget: ArrayLike, x_test: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the theorem is about, if its assumptions hold: Delta_0, forget rows, test points."""
    a, b = vector("theta_a", theta_a), vector("theta_b", theta_b)
    if a.shape != b.shape:
        raise ValueError(
            f"theta_a is {list(a.shape)} and theta_b {list(b.shape)}; both must be [d]"
        )
    forget, test = rows("x_forget", x_forget, len(a)), rows("x_test", x_test, len(a))
    if len(forget) > len(a):
        raise ValueError(
            f"x_forget is {list(forget.shape)}; the theorem needs as many rows as columns at most"
        )
    if len(test) < len(forget):
        raise ValueError(
            f"x_test is {list(test.shape)}; the theorem needs as many test points as there are "
            f"forget rows at least, {len(forget)}"
        )
    if known(forget):
        rank = np.linalg.matrix_rank(np.asarray(forget))
        if rank < len(forget):
            raise ValueError(
                f"x_forget has {len(forget)} rows of rank {rank}; the theorem needs linearly "
                "independent rows"
            )
    return a - b, forget, test


def with_retain(
    delta: ArrayLike, x_forget: ArrayLike, x_retain: ArrayLike | None, retain_weight: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    delta = vector("delta", delta)
    forget, weight = rows("x_forget", x_forget, len(delta)), retain_weight
    if x_retain is not None:
        x_retain = rows("x_retain", x_retain, len(delta))
    elif not known(weight) or np.any(np.asarray(weight) != 0):
        raise ValueError(f"retain_weight is {weight}; without x_retain it must be 0")
    return delta, forget, x_retain, not_negative("retain_weight", weight)
