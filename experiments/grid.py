"""Candidates of a grid search over the methods' settings."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.unlearn import METHODS

# label: (method, its settings, what was changed in them)
Candidates = dict[str, tuple[Any, Any, dict[str, Any]]]


def candidates(grids: dict[str, dict[str, tuple]]) -> Candidates:
    """All combinations of each method's grid, on top of its default settings.

    Args:
        grids: `{method: {setting: values}}`.
    """
    variants = {}
    for name, grid in grids.items():
        method, default = METHODS[name]
        for values in itertools.product(*grid.values()):
            changes = dict(zip(grid, values, strict=True))
            label = "-".join([name, *(f"{key}={value}" for key, value in changes.items())])
            variants[label] = (method, dataclasses.replace(default, **changes), changes)
    return variants


def margin_gaps(out: Path, results: dict) -> dict[str, dict[str, float]]:
    """How far each method's mean margins are from the oracles', for runs too small for KLOM.

    In standard deviations of the oracles' margin, absolute, the mean over a group's points.

    Args:
        out: the folder of a comparison.
        results: its results.

    Returns:
        By method: the gap of each group, and their mean.
    """
    with np.load(out / "margins.npz") as file:
        margins = {name: file[name] for name in file.files}
    oracle = margins.pop("oracle")
    n_train = results["settings"]["n_train"]
    forget = np.asarray(results["forget_set"]["indices"])
    groups = {
        "forget": forget,
        "retain": np.setdiff1d(np.arange(n_train), forget),
        "val": np.arange(n_train, oracle.shape[1]),
    }
    scores = {}
    for name, of_models in margins.items():
        gap = np.abs(of_models.mean(0) - oracle.mean(0)) / oracle.std(0)
        by_group = {group: float(gap[points].mean()) for group, points in groups.items()}
        scores[name] = by_group | {"mean": sum(by_group.values()) / len(by_group)}
    return scores
