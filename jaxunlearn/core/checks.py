"""Checks of arguments."""

import operator
from typing import Any


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number that is large enough."""
    try:
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; a whole number is needed") from None
    if found < least:
        raise ValueError(f"{name} is {found}; it must be at least {least}")
    return found
