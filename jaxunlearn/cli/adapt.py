"""`jaxunlearn adapt`: a network adapts to a stream of corrupted images."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli import drawing, study
from jaxunlearn.cli.console import found
from jaxunlearn.tta.settings import Settings

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxunlearn.core.study import Where
    from jaxunlearn.tta.study import Job

_MOST_COLUMNS = 8  # methods side by side


@dataclasses.dataclass(frozen=True)
class Adapt:
    """A trained network meets corrupted images, and methods adapt it while it predicts them.

    Attributes:
        settings: which network meets which stream.
        methods: which methods run beside source: bn, bn_alpha, bn_ema, tent, eta, eata, sar, deyo,
            rpl, cotta, rotta, roid, cmf, santa, lame, adacontrast, rmt.
        set: their settings where they are not the published ones, as METHOD.SETTING=VALUE.
        plugin: Python files with methods of your own, or with a network, see
            `jaxunlearn.tta.plugins`; their methods run beside the others.
        place: where.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    methods: tuple[str, ...] = ("bn", "tent", "rmt")
    set: tuple[str, ...] = ()
    plugin: tuple[Path, ...] = ()
    place: Annotated[study.Place, tyro.conf.arg(name="")] = study.Place()


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn adapt`; returns the exit code."""
    options = study.parse(Adapt, "adapt", argv)
    return study.run(["adapt", *argv], options, prepare, execute, show, devices)


def devices(options: Adapt, n_devices: int) -> "Mesh":
    """A mesh for the options."""
    from jaxunlearn.core import mesh

    shards = options.settings.batch_shards
    if shards > n_devices:
        raise ValueError(f"batch_shards is {shards}, but there are {n_devices} devices")
    return mesh.make({"data": max(1, shards)})


def prepare(options: Adapt, where: "Where") -> "Job":
    """Checks everything that can be wrong."""
    import jax

    from jaxunlearn import tta

    if jax.process_count() > 1:
        raise ValueError("processes: `adapt` runs in one process, on as many devices as it has")
    plugins = [tta.plugins.load(file) for file in dict.fromkeys(options.plugin)]
    own = {name: kind for plugin in plugins for name, kind in plugin.methods.items()}
    methods = tta.choice.chosen(options.methods, options.set, own)
    job = tta.study.prepare(options.settings, where, methods, plugins=plugins)
    study.say(found(job.dataset), _stream(job))
    return job


def execute(job: "Job", progress: Any) -> dict[str, Any]:
    """Does the work."""
    from jaxunlearn import tta

    return tta.study.execute(job, progress)


def _stream(job: "Job") -> str:
    plan = job.material
    n = len(plan.streams[0].rows)
    return f"Stream: {len(plan.visits)} visits of {len(plan.domains)} domains, {n:,} images."


def show(job: "Job", results: dict[str, Any], console: Console) -> str:
    """Draws the figure, writes the CSV and prints the table; returns what the folder holds."""
    folder = job.folder.path
    job.folder.write_text("results.csv", as_csv(results))
    for one in tables(results):
        console.print(one)
    console.print(legend(results), highlight=False)
    files = "results.json, results.csv"
    files += ", network.safetensors" if (folder / "network.safetensors").exists() else ""
    if "curve" in results or "entropy" in results:
        draw(results, folder / "figure.png")
        files += ", figure.png"
    return files


def legend(results: dict[str, Any]) -> str:
    """What the numbers of the table are."""
    n_seeds = results["settings"]["n_seeds"]
    kind = "errors in %" if "errors" in results else "entropy in nats; there are no labels"
    runs = f", means over {n_seeds} runs" if n_seeds > 1 else ""
    clean = f" The source network errs on {100 * results['clean_error']:.1f} % of clean images."
    diverged = [name for name, of in results["finite"].items() if not all(of)]
    warning = f" Not finite on the way: {', '.join(diverged)}." if diverged else ""
    return (
        f"{kind}{runs}. agreement: with the source's answers, in %. drift: how far the parameters "
        f"that train have moved, relative to their norm.{clean}{warning}"
    )


def tables(results: dict[str, Any]) -> list[Table]:
    """Domains by methods, at most eight of these in a table."""
    methods = list(results["entropy"])
    groups = [methods[i : i + _MOST_COLUMNS] for i in range(0, len(methods), _MOST_COLUMNS)]
    return [_table(results, group) for group in groups]


def _table(results: dict[str, Any], methods: list[str]) -> Table:
    kind, factor = ("errors", 100) if "errors" in results else ("entropy", 1)
    means = {name: factor * np.mean(results[kind][name], axis=0) for name in methods}
    out = Table("", *methods)
    for label, at in _rows(results["domains"]).items():
        out.add_row(label, *(f"{means[name][at].mean():.1f}" for name in methods))
    out.add_section()
    out.add_row("mean", *(f"{means[name].mean():.2f}" for name in methods))
    if results["settings"]["n_seeds"] > 1:
        out.add_row("±", *(f"{factor * _stderr(results[kind][name]):.2f}" for name in methods))
    agreement = (100 * np.mean(results["agreement"][name]) for name in methods)
    out.add_row("agreement", *(f"{value:.1f}" for value in agreement))
    drifts = (np.mean(results["drift"][name], axis=0)[-1] for name in methods)
    out.add_row("drift", *(f"{value:.3f}" for value in drifts))
    return out


def _stderr(of_seeds: list[list[float]]) -> float:
    means = np.mean(of_seeds, axis=1)
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def _rows(domains: list[Any]) -> dict[str, list[int]]:
    """The visits of each row: those of a corruption together, and rounds as well."""
    rows: dict[str, list[int]] = {}
    for visit, (name, _) in enumerate(domains):
        rows.setdefault(name, []).append(visit)
    return rows


def as_csv(results: dict[str, Any]) -> str:
    """A row for each method, seed and visit."""
    out = io.StringIO()
    kinds = [kind for kind in ("errors", "entropy", "agreement") if kind in results]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "seed", "visit", "domain", "severity", *kinds])
    for method in results["entropy"]:
        for seed in range(results["settings"]["n_seeds"]):
            for visit, (name, severity) in enumerate(results["domains"]):
                values = [results[kind][method][seed][visit] for kind in kinds]
                first = results["settings"]["seed"] + seed
                writer.writerow([method, first, visit, name, severity, *values])
    return out.getvalue()


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the error over the stream, and the drift of the parameters."""
    with drawing.figure(path, (11, 4)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        kind = "curve" if "curve" in results else "entropy"
        for i, (method, of_seeds) in enumerate(results[kind].items()):
            curve = np.mean(of_seeds, axis=0)
            at = (np.arange(len(curve)) + 0.5) / len(curve)
            color = f"C{i % 10}"
            left.plot(at, curve, label=method, color=color, linewidth=1.2)
            drift = np.mean(results["drift"][method], axis=0)
            right.plot(np.linspace(0, 1, len(drift) + 1), [0, *drift], color=color)
        left.set(xlabel="position in the stream", ylabel="error" if kind == "curve" else kind)
        left.legend(fontsize="small", ncols=2)
        right.set(xlabel="position in the stream", ylabel="relative change of trained parameters")
