"""`jaxunlearn attribute`: which training points a model's answers depend on."""

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli import drawing, study
from jaxunlearn.cli.console import found
from jaxunlearn.comparison.settings import AttributeSettings

if TYPE_CHECKING:
    from jaxunlearn.comparison import attribute
    from jaxunlearn.core.study import Where


@dataclasses.dataclass(frozen=True)
class Attribute:
    """Trains models on random subsets, regresses datamodels on them, and judges these and TRAK.

    Attributes:
        settings: what is attributed.
        place: where.
    """

    settings: Annotated[AttributeSettings, tyro.conf.arg(name="")] = AttributeSettings()
    place: Annotated[study.Place, tyro.conf.arg(name="")] = study.Place()


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn attribute`; returns the exit code."""
    options = study.parse(Attribute, "attribute", argv)
    from jaxunlearn.comparison import attribute

    return study.run(["attribute", *argv], options, prepare, attribute.execute, show)


def prepare(options: Attribute, where: "Where") -> "attribute.Job":
    """Checks everything that can be wrong."""
    from jaxunlearn.comparison import attribute

    job = attribute.prepare(options.settings, where)
    study.say(found(job.dataset))
    return job


def show(job: "attribute.Job", results: dict[str, Any], console: Console) -> str:
    """Draws the figure and prints the scores; returns what the folder holds."""
    data = job.dataset
    influences(results["targets"], data.x_train, data.x_val, job.folder.path / "figure.png")
    console.print(table(results))
    with_trak = ", trak.npz" if job.settings.checkpoints else ""
    return f"results.json, figure.png, datamodel.npz{with_trak} and settings.json"


def table(results: dict[str, Any]) -> Table:
    """The linear datamodeling scores of an attribution job, one row per kind."""
    settings = results["settings"]
    title = (
        f"LDS on {settings['held_out']} held-out subsets; datamodels: {settings['method']} on "
        f"{settings['members']} members"
    )
    out = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    for header in ("attribution", "mean", "+-", "median", "points"):
        out.add_column(header, justify="left" if header == "attribution" else "right")
    for name, row in results["lds"].items():
        numbers = [f"{row[key]:.3f}" if key in row else "-" for key in ("mean", "stderr", "p50")]
        out.add_row(name, *numbers, str(row["points"]))
    return out


def influences(
    targets: list[dict[str, Any]],
    x_train: np.ndarray,
    x_val: np.ndarray,
    path: str | os.PathLike,
) -> None:
    """Draws validation examples with the training examples that help and harm them most.

    Args:
        targets: as in the results of `comparison.attribute.run`.
        x_train: training inputs [n, ...]: images [H, W, C] or [H, W], squares flattened to a row,
            or anything else, which is drawn as a line.
        x_val: validation inputs [m, ...].
        path: where the PNG goes.
    """
    n_side = len(targets[0]["helpful"])
    width = 1 + 2 * n_side
    with drawing.figure(path, (1.1 * width, 1.35 * len(targets) + 0.5)) as figure:
        grid = figure.subplots(len(targets), width, squeeze=False)
        for row, target in zip(grid, targets, strict=True):
            _draw(row[0], x_val[target["index"]], f"#{target['index']}: {target['label']}")
            shown = [*target["helpful"], *target["harmful"]]
            for axes, point in zip(row[1:], shown, strict=True):
                title = f"{point['label']} ({point['effect']:+.2f})"
                _draw(axes, x_train[point["index"]], title)
        figure.suptitle(
            f"validation example and class; its {n_side} most helpful and {n_side} most harmful "
            "training examples (effect on its margin)",
            fontsize="medium",
        )


def _draw(axes: Any, example: np.ndarray, title: str) -> None:
    axes.set_title(title, fontsize="x-small")
    axes.set_xticks([])
    axes.set_yticks([])
    side = int(np.sqrt(example.size))
    if example.ndim == 1 and side * side == example.size:
        example = example.reshape(side, side)
    if example.ndim < 2:
        axes.plot(example, linewidth=0.8)
    else:
        axes.imshow(np.squeeze(example), cmap="gray_r")
