"""Figures; matplotlib is imported when one is drawn, here alone."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxunlearn.core.disk import replacing

COLORS = (*(f"C{i}" for i in range(10)), "black", "gold", "navy", "lime", "salmon", "peru")


@contextlib.contextmanager
def figure(path: str | os.PathLike, size: tuple[float, float], dpi: int = 110) -> Iterator[Any]:
    """A figure to draw into, which is written at the end of the block.

    Args:
        path: where the PNG goes.
        size: width and height in inches.
        dpi: dots per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(page)
    yield page
    with replacing(path) as file:
        page.savefig(file, format="png", dpi=dpi)


def band(axes: Any, x: Any, values: np.ndarray, color: str, label: str | None) -> None:
    """The mean of [seeds, T] as a line, and what lies between the seeds."""
    axes.plot(x, values.mean(0), color=color, label=label)
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
