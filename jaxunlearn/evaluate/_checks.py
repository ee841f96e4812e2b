"""Checks of arguments that the measures of language models share."""

import numpy as np


def finite(name: str, values, axes: str) -> np.ndarray:
    """float64 with the axes named, such as "B, J": none of them empty, no NaN, no infinity."""
    array = np.asarray(values, np.float64)
    if array.ndim != axes.count(",") + 1 or array.size == 0:
        raise ValueError(
            f"{name} has shape {list(array.shape)}; [{axes}] is needed, with no axis empty"
        )
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        at = wrong[0].tolist()
        raise ValueError(f"{name} is {array[tuple(at)]} at {at}; it must be finite")
    return array


def strings(name: str, values, length: int | None = None) -> list[str]:
    """A list of texts, of a given length; one text is not taken for a list of its letters."""
    if isinstance(values, str | bytes) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name} is {values!r:.60}; a sequence of strings is needed")
    values = list(values)
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} texts; {length} are needed")
    return values
