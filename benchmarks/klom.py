"""KLOM of 60,000 points x 100 models a side: vectorised against loops over points."""

import numpy as np

from benchmarks.harness import Row, agree, measure
from benchmarks.peers import klom_loop
from jaxunlearn.evaluate import klom


def rows() -> list[Row]:
    """The rows of the table."""
    rng = np.random.default_rng(0)
    unlearned = rng.normal(size=(100, 60_000)) + rng.normal(size=60_000)
    oracle = rng.normal(size=(100, 60_000))
    few = slice(0, 2_000)
    gap_released = agree(
        "easydub",
        klom(unlearned[:, few], oracle[:, few], variant="easydub"),
        klom_loop.released_loop(unlearned[:, few], oracle[:, few]),
        1e-9,
    )
    gap_closed = agree(
        "closed",
        klom(unlearned[:, few], oracle[:, few]),
        klom_loop.bincount_loop(unlearned[:, few], oracle[:, few]),
        1e-9,
    )
    released = measure(lambda: klom_loop.released_loop(unlearned, oracle), repeats=3, note="numpy")
    lean = measure(lambda: klom_loop.bincount_loop(unlearned, oracle), repeats=3, note="numpy")
    closed = measure(lambda: klom(unlearned, oracle))
    easydub = measure(lambda: klom(unlearned, oracle, variant="easydub"))
    what = "KLOM of 60,000 points x 100 models"
    return [
        Row(f"{what}, closed", closed, released, "loop as released", gap_released, target=20.0),
        Row(f"{what}, easydub", easydub, released, "loop as released", gap_released, target=20.0),
        Row(f"{what}, closed", closed, lean, "loop with bincount", gap_closed),
    ]
