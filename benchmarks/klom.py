"""KLOM of 60,000 points x 100 models a side: vectorised against loops over points."""

import functools

import numpy as np

from benchmarks.harness import Measured, Row, agree, measure, with_peak
from benchmarks.peers import klom_loop
from jaxunlearn.evaluate import klom


def side(name: str):
    """One side's call: "closed" and "easydub" are ours, the others the loops."""
    rng = np.random.default_rng(0)
    unlearned = rng.normal(size=(100, 60_000)) + rng.normal(size=60_000)
    oracle = rng.normal(size=(100, 60_000))
    calls = {
        "closed": klom,
        "easydub": functools.partial(klom, variant="easydub"),
        "loop closed": functools.partial(klom_loop.released_loop, closed=True),
        "loop easydub": functools.partial(klom_loop.released_loop, closed=False),
        "bincount": klom_loop.bincount_loop,
    }
    return functools.partial(calls[name], unlearned, oracle)


def rows() -> list[Row]:
    """The rows of the table; every pair is compared on all points."""

    def measured(name: str, repeats: int) -> Measured:
        timed = measure(side(name), repeats=repeats, note="numpy")
        return with_peak(timed, "benchmarks.klom", name)

    ours = {name: (side(name)(), measured(name, 5)) for name in ("closed", "easydub")}
    what = "KLOM of 60,000 points x 100 models"
    table = []
    for variant, peer, title, target in (
        ("closed", "loop closed", "loop as released code", 20.0),
        ("easydub", "loop easydub", "loop as released code", 20.0),
        ("closed", "bincount", "leanest loop, bincount", None),
    ):
        values, mine = ours[variant]
        gap = agree(peer, values, side(peer)(), 1e-9)
        table.append(Row(f"{what}, {variant}", mine, measured(peer, 3), title, gap, target=target))
    return table
