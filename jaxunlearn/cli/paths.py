"""`jaxunlearn paths`: the same stages in different orders, then local unlearning; or its theory."""

import dataclasses
import itertools
import os
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jaxunlearn import paths
from jaxunlearn.cli import drawing, study
from jaxunlearn.cli.drawing import COLORS, band
from jaxunlearn.paths.settings import Settings

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxunlearn.core.run_folder import Progress
    from jaxunlearn.core.study import Job, Where


@dataclasses.dataclass(frozen=True)
class Paths:
    """Trains a language model through the same stages in different orders, and lets each forget.

    Attributes:
        settings: what is studied.
        theory: draw the linear theory instead, which needs no model: the theorem's bound, the
            recency of four stages, and where ascent diverges.
        place: where.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    theory: bool = False
    place: Annotated[study.Place, tyro.conf.arg(name="")] = study.Place()


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn paths`; returns the exit code."""
    options = study.parse(Paths, "paths", argv)
    command = ["paths", *argv]
    if options.theory:
        return study.run(command, options, prepare_theory, execute_theory, show_theory)
    return study.run(command, options, prepare, paths.execute, show, devices)


def devices(options: Paths, n_devices: int) -> "Mesh":
    """A mesh for the options."""
    return paths.devices(options.settings, n_devices)


def prepare(options: Paths, where: "Where") -> "paths.Job":
    """Checks everything that can be wrong."""
    return paths.prepare(options.settings, where)


def show(job: "paths.Job", results: dict[str, Any], console: Console) -> str:
    """Draws the figure and prints the table; returns what the folder holds."""
    draw(results, job.folder.path / "figure.png")
    console.print(table(results))
    return "results.json, figure.png and settings.json"


def prepare_theory(options: Paths, where: "Where") -> "Job[None]":
    """A folder for the linear theory, which has no settings."""
    from jaxunlearn.core.run_folder import RunFolder, versions
    from jaxunlearn.core.study import Job, begins

    class Theory(Job[None]):
        """The work, whose parts take about as long as this."""

        @property
        def phases(self) -> dict[str, float]:
            return {"divergence": 5.0, "recency": 2.0, "phases": 3.0}

    if options.settings != Settings():
        raise ValueError("theory is given with settings of a study; it has none")
    record = {"theory": "linear", "versions": versions()}
    folder = RunFolder(where.out, record, {}, where.resume)
    mesh = where.mesh or study.one_axis(options, 1)
    return begins(lambda: Theory(None, record, folder, mesh))()


def execute_theory(job: "Job[None]", progress: "Progress") -> dict[str, Any]:
    """Computes the theory."""
    from jaxunlearn import theory

    results = theory.linear_study.report(progress=progress)
    job.folder.write_json("results.json", results)
    return results


def show_theory(job: "Job[None]", results: dict[str, Any], console: Console) -> str:
    """Draws the figure and prints the table; returns what the folder holds."""
    draw_theory(results, job.folder.path / "figure.png")
    console.print(theory_table(results))
    return "results.json, figure.png and settings.json"


def theory_table(results: dict[str, Any]) -> Table:
    """What the linear theory comes to."""
    course, recency, phases = (results[part] for part in ("divergence", "recency", "phases"))
    scores = np.median(np.array(recency["forget_score"]), axis=0)
    n, low_high = course["problems"], "{:.3g} to {:.3g}"
    apart = f"{n - course['midpoint_within_eps']} of {n}"
    rows = {
        "problems on which the bound was checked": n,
        "steps at which the distance of two orders lay below it": course["violations"],
        "least distance over the bound": f"{course['least_slack']:.3g}",
        "step from which the bound holds": low_high.format(*course["holds_from_step"]),
        "growth of the distance over the guaranteed one": low_high.format(*course["slope_ratio"]),
        "problems where no retrained model is near both orders": apart,
        "the last of four stages is forgotten least": (
            f"{recency['last_is_slowest']} of {len(recency['forget_score'])}"
        ),
        "error that unlearning adds, by position (medians)": ", ".join(f"{s:.3g}" for s in scores),
        "retain weight at which divergence stops": f"{phases['overlap']['stops_at']:.3g}",
    }
    out = Table("linear theory", "measured", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, value in rows.items():
        out.add_row(name, str(value))
    return out


def table(results: dict[str, Any]) -> Table:
    """The results as a table, one row per path and loss; means over seeds, ± standard errors."""
    kept = [name for name in results["orders"][0] if name != results["forget"]]
    out = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    out.title = f"unlearning {results['forget']}, {results['checks'][-1]} steps"
    for header in ("loss", "path"):
        out.add_column(header, no_wrap=True)
    headers = [f"utility\n{name}" for name in kept]
    for header in ("forget\nscore", *headers, "Jeffreys to\nother paths", "distance to\nretrained"):
        out.add_column(header, justify="right", no_wrap=True)
    for loss, row in results["losses"].items():
        jeffreys = np.array(row["jeffreys"])[-1].mean(0)
        retrained = np.array(row["distance_to_retrained"])[-1].mean(0)
        for i, order in enumerate(results["orders"]):
            out.add_row(
                loss,
                " > ".join(order),
                _over_seeds(row["forget_score"][i]),
                *(_over_seeds(row["utility"][name][i]) for name in kept),
                f"{jeffreys[i].sum() / (len(jeffreys) - 1):.4f}",
                f"{retrained[i]:.1f}",
            )
        out.add_section()
    return out


def _over_seeds(values: list[float]) -> str:
    """A mean, and of several seeds its standard error."""
    mean, n = f"{np.mean(values):.3f}", len(values)
    return mean if n < 2 else f"{mean}±{np.std(values, ddof=1) / np.sqrt(n):.3f}"


def draw(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws a path study: forgetting of every path, and how far paths and retrained models differ.

    One column for each loss. Lines are means over seeds; where there are several, bands reach from
    the least to the largest.

    Args:
        results: of `paths.execute`.
        path: where the PNG goes.
    """
    losses, steps = results["losses"], results["checks"]
    names = [" > ".join(order) for order in results["orders"]]
    with drawing.figure(path, (4 * len(losses) + 2, 9), dpi=90) as figure:
        grid = figure.subplots(3, len(losses), squeeze=False, sharex=True, sharey="row")
        for column, (loss, of_loss) in zip(grid.T, losses.items(), strict=True):
            label = np.array(of_loss["label_logp"])  # paths, seeds, checks
            fall, jeffreys = label[..., :1] - label, np.array(of_loss["jeffreys"])
            retrained = np.moveaxis(np.array(of_loss["distance_to_retrained"]), 0, -1)
            for i, name in enumerate(names):
                band(column[0], steps, fall[i], COLORS[i % len(COLORS)], name)
                band(column[2], steps, retrained[:, i], COLORS[i % len(COLORS)], name)
            for i, j in itertools.combinations(range(len(names)), 2):
                last = int(j == len(names) - 1 or i == len(names) - 1)
                # Pairs with the last path, often the recent one, have a colour of their own.
                band(column[1], steps, jeffreys[:, :, i, j].T, f"C{last}", None)
            column[0].set_title(loss)
            column[-1].set_xlabel("steps of unlearning")
            column[1].set_yscale("log")
            column[2].set_yscale("log")
        grid[0, 0].set_ylabel("forget score (fall of log p)")
        grid[1, 0].set_ylabel(f"Jeffreys divergence of pairs\n(orange: with {names[-1]})")
        grid[2, 0].set_ylabel("logit distance to the retrained model")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_theory(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the linear theory of stage orders: bound, recency and two phase diagrams.

    Args:
        results: of `theory.linear_study.report`.
        path: where the PNG goes.
    """
    with drawing.figure(path, (11, 8)) as figure:
        (course, recency), (size, overlap) = figure.subplots(2, 2)
        _draw_bound(course, results["divergence"]["example"])
        _draw_recency(recency, np.array(results["recency"]["forget_score"]))
        _draw_sizes(figure, size, results["phases"]["size"])
        _draw_overlaps(figure, overlap, results["phases"]["overlap"])


def _draw_bound(axes: Any, example: dict[str, Any]) -> None:
    """Two orders drift apart, at least as far as the theorem says."""
    start = max(example["holds_from_step"], 0)
    axes.semilogy(example["distance"], label="distance of the two orders")
    axes.semilogy(example["bound"], "C1:")
    steps = range(start, len(example["bound"]))
    axes.semilogy(
        steps, example["bound"][start:], "C1", label="lower bound (dotted: before it holds)"
    )
    axes.axhline(example["eps"], color="0.6", linestyle=":", label="eps")
    axes.axvline(
        example["impossible_from_step"], color="0.6", label="no retrained model is eps-near both"
    )
    axes.set(xlabel="step of ascent", title="A then B against B then A, while U is unlearned")
    axes.set_ylabel("mean squared difference of predictions")
    axes.legend(fontsize="small")


def _draw_recency(axes: Any, scores: np.ndarray) -> None:
    """Forget scores [problems, 4] by the position of the forget set."""
    axes.semilogy(range(1, 5), scores.T, color="C0", linewidth=0.6, alpha=0.4)
    axes.semilogy(range(1, 5), np.median(scores, axis=0), "o-", color="black", label="median")
    axes.set(xlabel="position of the forget set among four stages", xticks=range(1, 5))
    axes.set(
        ylabel="increase of its error by unlearning", title="the last stage is forgotten least"
    )
    axes.legend(fontsize="small")


def _draw_sizes(figure: Any, axes: Any, phases: dict[str, Any]) -> None:
    """Growth by step size and size of the forget set."""
    lr, k, rate = phases["lr"], phases["k"], np.log10(phases["rate"])
    image = axes.pcolormesh(lr, k, rate, shading="nearest")
    figure.colorbar(image, ax=axes, label="log10 of growth per step")
    axes.set(xscale="log", xlabel="step size", ylabel="forget rows", yticks=k[4::5])
    axes.set_title("growth without a retain set")


def _draw_overlaps(figure: Any, axes: Any, phases: dict[str, Any]) -> None:
    """Growth by retain weight and overlap of forget and retain rows."""
    weights, rate = phases["retain_weight"][1:], np.array(phases["rate"])[:, 1:]  # without weight 0
    most = rate.max()
    image = axes.pcolormesh(
        weights, phases["overlap"], rate, cmap="RdBu_r", vmin=-most, vmax=most, shading="nearest"
    )
    figure.colorbar(image, ax=axes, label="growth of log difference per step", extend="min")
    axes.axvline(phases["stops_at"], color="black", linestyle=":")
    axes.set(xscale="log", xlabel="retain weight (dotted: stops divergence at overlap 1)")
    axes.set(ylabel="overlap of forget and retain rows", title="growth against a retain set")
