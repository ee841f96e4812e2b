"""Candidates of a grid search over the methods' settings."""

import dataclasses
import itertools
from typing import Any

from jaxunlearn.unlearn import METHODS

# label: (method, its settings, what was changed in them)
Candidates = dict[str, tuple[Any, Any, dict[str, Any]]]


def candidates(grids: dict[str, dict[str, tuple]]) -> Candidates:
    """All combinations of each method's grid, on top of its default settings.

    Args:
        grids: `{method: {setting: values}}`.
    """
    found = {}
    for name, grid in grids.items():
        method, default = METHODS[name]
        for values in itertools.product(*grid.values()):
            changes = dict(zip(grid, values, strict=True))
            label = "-".join([name, *(f"{key}={value}" for key, value in changes.items())])
            found[label] = (method, dataclasses.replace(default, **changes), changes)
    return found
