"""Whether what was computed is finite; the first number that is not is named."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn.core import tree
from jaxunlearn.core.checks import NonFiniteError


def check_members(
    what: Callable[[int], str], values: Any, first: int = 0, *, axis: str = "step", advice: str = ""
) -> None:
    """Raises a NonFiniteError for the first member with a value that is not finite.

    Args:
        what: `what(i)` names the values of member i, such as "the loss of member 3".
        values: [members, ...]; a single further axis is named in the message.
        first: number of the first member.
        axis: name of that further axis.
        advice: end of the message.
    """
    values = np.asarray(values)
    finite = np.isfinite(values)
    if finite.all():
        return
    member, *place = np.argwhere(~finite)[0].tolist()
    where = f" at {place}" if place else ""
    where = f" at {axis} {place[0]} of {values.shape[1]}" if len(place) == 1 else where
    value = values[(member, *place)]
    raise NonFiniteError(f"{what(first + member)} is {value}{where}{advice}")


def check_leaves(what: str, leaves: tree.Tree, advice: str = "") -> None:
    """Raises a NonFiniteError for the first leaf of a tree that is not finite."""
    for name, leaf in tree.named(leaves).items():
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise NonFiniteError(f"{what}: {name} is not finite{advice}")
