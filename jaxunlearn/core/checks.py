"""Checks of arguments: each returns the value, or raises a ValueError that says what is allowed."""

import math
import operator
from collections.abc import Iterable
from typing import Any


class NonFiniteError(ArithmeticError):
    """A training diverged: a loss, a weight or an output is infinite or not a number."""


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number that is large enough; True and False are none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; a whole number is needed") from None
    return at_least(name, number, least)


def at_least(name: str, value: Any, least: float, below: float = math.inf) -> Any:
    """A number that is large enough, and finite or below a bound."""
    if not least <= _number(name, value) < below:
        bound = "" if below == math.inf else f" and below {below}"
        bound = bound or (" and finite" if value == math.inf else "")
        raise ValueError(f"{name} is {value}; it must be at least {least}{bound}")
    return value


def positive(name: str, value: Any) -> Any:
    """A finite number above 0."""
    if not 0 < _number(name, value) < math.inf:
        raise ValueError(f"{name} is {value}; it must be above 0 and finite")
    return value


def share(name: str, value: Any) -> Any:
    """A number from 0 to 1."""
    if not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name} is {value}; 0 to 1 are allowed")
    return value


def temperature(name: str, value: Any, *, zero: bool = False) -> Any:
    """A temperature: above 0 and finite, or 0 where that takes the likeliest; likewise its inverse.

    A traced value passes, so that temperatures can be swept.
    """
    import numpy as np
    from jax.core import Tracer

    if not isinstance(value, Tracer):
        given = np.asarray(value)
        if given.dtype.kind in "bOSU":
            raise ValueError(f"{name} is {value!r}; a number is needed")
        numbers = given.astype(np.float64)
        if not (((numbers >= 0) if zero else (numbers > 0)) & (numbers < math.inf)).all():
            bound = ">= 0" if zero else "> 0"
            raise ValueError(f"{name} is {value}; it must be {bound} and finite")
    return value


def _number(name: str, value: Any) -> Any:
    """What is no number is named before it is compared with one."""
    if value is None or isinstance(value, (bool, str, bytes, list, tuple, dict)):
        raise ValueError(f"{name} is {value!r}; a number is needed")
    return value


def rows(name: str, values: Any, n: int, least: int = 0) -> Any:
    """Numbers of rows of an axis, int64 [k]: no mask, no fractions, no matrix, none out of range.

    Args:
        name: name of the argument.
        values: numbers of rows, in any order.
        n: length of the axis.
        least: smallest number allowed, -1 where it stands for no row.
    """
    import numpy as np

    array = np.asarray(values)
    if array.dtype == bool:
        raise ValueError(f"{name} is a mask; numbers of rows are needed: numpy.flatnonzero(mask)")
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{name} is {array.dtype}{list(array.shape)}; a list of integers is needed"
        )
    outside = array[(array < least) | (array >= n)]
    if len(outside):
        raise ValueError(
            f"{name} index {outside[0]} is out of range; allowed are {least} to {n - 1}"
        )
    return array.astype(np.int64)


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """One of the values that are allowed."""
    allowed = tuple(allowed)
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise ValueError(f"{name} is {value!r}; {names} are allowed")
    return value
