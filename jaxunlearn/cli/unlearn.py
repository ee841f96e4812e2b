"""`jaxunlearn unlearn`: many models forget by several methods, and retrained oracles judge them."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import tyro
from rich.console import Console

from jaxunlearn import comparison
from jaxunlearn.cli import columns, drawing, study
from jaxunlearn.cli.columns import GROUPS as GROUPS
from jaxunlearn.cli.columns import table as table
from jaxunlearn.cli.console import found, guarded
from jaxunlearn.cli.drawing import COLORS
from jaxunlearn.comparison.settings import Settings
from jaxunlearn.unlearn.method_settings import DEFAULTS

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxunlearn.comparison.plugins import Plugin
    from jaxunlearn.core.study import Where
    from jaxunlearn.evaluate import Trajectory

# What runs unless others are named: the methods that need no estimates.
_BASELINES = tuple(name for name, settings in DEFAULTS.items() if not hasattr(settings, "needs"))
_COST = "cost in retrainings (hollow: with what all models share)"


def settings_class(plugins: "Sequence[Plugin]" = ()) -> type:
    """One group of options per method that has settings: --scrub.learning-rate and so on."""
    every = DEFAULTS | {plugin.name: plugin.settings for plugin in plugins}
    fields = [
        (name, type(settings), dataclasses.field(default=settings))
        for name, settings in every.items()
        if name != "retrain" and dataclasses.fields(settings)
    ]
    return dataclasses.make_dataclass("MethodSettings", fields, frozen=True)


MethodSettings = settings_class()


@dataclasses.dataclass(frozen=True)
class Unlearn:
    """Many models forget by several methods, and retrained oracles judge them.

    Attributes:
        settings: what is compared.
        methods: which methods run, `none`, `retrain` and those of plugins always do; also known:
            oracle_matching, dm_direct and dmm, for which more models are trained (see
            `estimates`).
        plugin: Python files with a method of your own each: a function and a dataclass of settings,
            which become options, too.
        save: methods whose weights are written into the folder `weights` of the run, beside those
            of the original models and the oracles; `jaxunlearn.load` reads them.
        columns: further columns of the table, or "all" of them: ulira, mia_confidence, ks_forget,
            renyi_forget, klom_p95_forget, compile and others.
        of_methods: each method's settings.
        place: where.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    methods: tuple[str, ...] = _BASELINES
    plugin: tuple[Path, ...] = ()
    save: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    of_methods: Annotated[MethodSettings, tyro.conf.arg(name="")] = MethodSettings()  # type: ignore[valid-type]
    place: Annotated[study.Place, tyro.conf.arg(name="")] = study.Place()


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn unlearn`; returns the exit code."""
    command, loaded = ["unlearn", *argv], []
    if files := _plugin_files(argv):
        code = guarded(lambda: loaded.extend(_loaded(files)), study.shell(command))
        if code:
            return code
    options = study.parse(_options(loaded), "unlearn", argv)
    check = functools.partial(prepare, plugins=loaded)
    showing = functools.partial(show, further=options.columns)
    return study.run(command, options, check, comparison.execute, showing, devices)


def _plugin_files(argv: list[str]) -> list[str]:
    """The files of `--plugin`, whose methods have options that the parser is to know."""
    files: list[str] = []
    takes = False
    for word in argv:
        if word.startswith("-"):
            takes = word.partition("=")[0] == "--plugin"
            files += [word.partition("=")[2]] if takes and "=" in word else []
        elif takes:
            files.append(word)
    return files


def _loaded(files: list[str]) -> "list[Plugin]":
    """Their methods."""
    from jaxunlearn.comparison import plugins

    found = [plugins.load(Path(file).expanduser()) for file in dict.fromkeys(files)]
    for i, plugin in enumerate(found):
        if plugin.name in (other.name for other in found[:i]):
            raise ValueError(f"plugin has two methods of the name {plugin.name!r}")
    return found


def _options(plugins: "Sequence[Plugin]") -> type[Unlearn]:
    """The options of the verb, with those of plugins."""
    if not plugins:
        return Unlearn
    settings = settings_class(plugins)
    field = dataclasses.field(default=settings())
    own = [("of_methods", Annotated[settings, tyro.conf.arg(name="")], field)]
    more: dict[str, Any] = {"bases": (Unlearn,), "namespace": {"__doc__": Unlearn.__doc__}}
    return cast(type[Unlearn], dataclasses.make_dataclass("Unlearn", own, frozen=True, **more))


def devices(options: Unlearn, n_devices: int) -> "Mesh":
    """A mesh for the options."""
    return comparison.devices(options.settings, n_devices)


def prepare(options: Unlearn, where: "Where", plugins: "Sequence[Plugin]" = ()) -> "comparison.Job":
    """Checks everything that can be wrong."""
    columns.check(options.columns)
    methods = _chosen(options, plugins)
    more: dict[str, Any] = {"plugins": plugins, "save": options.save}
    job = comparison.prepare(options.settings, where, methods, **more)
    study.say(found(job.dataset), _forgotten(job.settings))
    return job


def _forgotten(settings: Settings) -> str:
    """What is to be forgotten, with what defaults came to."""
    of_class = (
        f" of class {settings.forget_class}" if settings.forget in ("class", "cluster") else ""
    )
    return f"to be forgotten: {settings.forget_size}{of_class} ({settings.forget})"


def _chosen(options: Unlearn, plugins: "Sequence[Plugin]") -> "comparison.Methods":
    """The methods that run, with their settings."""
    from jaxunlearn.unlearn import METHODS

    own = {plugin.name: (plugin.function, plugin.settings) for plugin in plugins}
    known = METHODS | own
    unknown = [name for name in options.methods if name not in known]
    if unknown:
        raise ValueError(f"method is {unknown[0]!r}; known methods: {', '.join(known)}")
    chosen = {"none", "retrain", *options.methods, *own}
    for field in dataclasses.fields(options.of_methods):
        if field.name not in chosen and getattr(options.of_methods, field.name) != field.default:
            raise ValueError(f"settings of {field.name} are given, but it is not among the methods")
    return {
        name: (method, getattr(options.of_methods, name, default))
        for name, (method, default) in known.items()
        if name in chosen
    }


def show(
    job: "comparison.Job", results: dict[str, Any], console: Console, further: Sequence[str] = ()
) -> str:
    """Draws the figure and prints the tables; returns what the folder holds."""
    draw(job.folder.path, job.folder.path / "figure.png")
    columns.show(console, results, further)
    saved = "weights, " if job.saved else ""
    return f"results.json, figure.png, margins.npz, {saved}and settings.json"


def draw(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws a comparison: forgetting against damage, forgetting against cost, margin histograms.

    Args:
        folder: the output folder of `comparison.run`.
        path: where the PNG goes.
    """
    results = json.loads((Path(folder) / "results.json").read_text())
    with np.load(Path(folder) / "margins.npz") as margins:
        points = results["forget_set"]["indices"]
        unlearned = {name: margins[name][:, points] for name in margins}
    oracle = unlearned.pop("oracle")
    names = list(unlearned)
    with drawing.figure(path, (12, 4 + 2 * -(-len(names) // 4))) as figure:
        top, bottom = figure.subfigures(
            2, 1, squeeze=False, height_ratios=[4, 2 * -(-len(names) // 4)]
        )[:, 0]
        damage, cost = top.subplots(1, 2)
        colors = dict(zip(names, itertools.cycle(COLORS), strict=False))
        for name in names:
            row = results["methods"][name]
            forget = row["klom"]["forget"]["mean"]
            damage.plot(row["klom"]["retain"]["mean"], forget, "o", color=colors[name], label=name)
            _with_and_without_shared(cost, row, colors[name])
        for axes in (damage, cost):
            axes.axhline(results["floor"]["forget"]["mean"], color="0.6", linestyle=":", zorder=0)
            axes.set_ylabel("mean KLOM on the forget set")
        damage.axvline(results["floor"]["retain"]["mean"], color="0.6", linestyle=":", zorder=0)
        damage.set(
            xlabel="mean KLOM on the retain set", title="forgetting and damage (dotted: floor)"
        )
        top.legend(loc="outside right upper", fontsize="small")
        cost.set(xlabel=_COST, title="forgetting and cost")
        cost.set_xscale("symlog", linthresh=0.01)
        cost.set_xlim(left=-0.001)

        _draw_margins(bottom, oracle, unlearned, colors)


def _draw_margins(
    figure: Any, oracle: np.ndarray, unlearned: dict[str, np.ndarray], colors: dict[str, str]
) -> None:
    """A histogram for each method, beside the oracles'."""
    n_rows = -(-len(unlearned) // 4)
    grid = figure.subplots(n_rows, 4, squeeze=False, sharex=True, sharey=True).ravel()
    pooled = np.concatenate([oracle.ravel(), *(margins.ravel() for margins in unlearned.values())])
    low, high = np.percentile(pooled, [0.5, 99.5])
    edges = np.linspace(low, high, 60)
    for axes, (name, margins) in zip(grid, unlearned.items(), strict=False):
        axes.hist(oracle.ravel(), edges, density=True, color="0.75", label="oracle")
        axes.hist(margins.ravel(), edges, density=True, histtype="step", color=colors[name])
        axes.set_title(name, fontsize="small")
        axes.set_yticks([])
    for axes in grid[len(unlearned) :]:
        axes.set_axis_off()
    figure.supxlabel("margin on the forget set (grey: oracles), all models pooled")


def trade_offs(results: dict[str, dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws forgetting against damage and against cost for several comparisons side by side.

    Args:
        results: `{title: results.json of a comparison}`, with the same methods.
        path: where the PNG goes.
    """
    with drawing.figure(path, (4 * len(results) + 2, 7)) as figure:
        grid = figure.subplots(2, len(results), squeeze=False, sharey=True)
        for (damage, cost), (title, result) in zip(grid.T, results.items(), strict=True):
            floor = result["floor"]
            for (name, row), color in zip(
                result["methods"].items(), itertools.cycle(COLORS), strict=False
            ):
                forget = row["klom"]["forget"]["mean"]
                damage.plot(row["klom"]["val"]["mean"], forget, "o", color=color, label=name)
                _with_and_without_shared(cost, row, color)
            for axes in (damage, cost):
                axes.axhline(floor["forget"]["mean"], color="0.6", linestyle=":", zorder=0)
            damage.axvline(floor["val"]["mean"], color="0.6", linestyle=":", zorder=0)
            damage.set(title=title, xlabel="mean KLOM on validation (dotted: floor)")
            cost.set_xlabel(_COST)
            cost.set_xscale("symlog", linthresh=0.01)
            cost.set_xlim(left=-0.001)
        for axes in grid[:, 0]:
            axes.set_ylabel("mean KLOM on the forget set")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")


def _with_and_without_shared(axes: Any, row: dict[str, Any], color: str) -> None:
    forget = row["klom"]["forget"]["mean"]
    axes.plot(row["cost"], forget, "o", color=color)
    if row["cost_shared"]:
        whole = row["cost"] + row["cost_shared"]
        axes.plot([row["cost"], whole], [forget] * 2, color=color, linewidth=0.7, alpha=0.6)
        axes.plot(whole, forget, "o", color=color, fillstyle="none")


def trajectories(
    courses: dict[str, tuple[list[float], "Trajectory"]], floor: float, path: str | os.PathLike
) -> None:
    """Draws KLOM and the points' margins in the course of unlearning, a column per method.

    Args:
        courses: by method the cost of each snapshot in retrainings, and the trajectory on the
            forget set.
        floor: mean KLOM of fresh oracles there.
        path: where the PNG goes.
    """
    with drawing.figure(path, (3 * len(courses), 6)) as figure:
        grid = figure.subplots(2, len(courses), squeeze=False, sharey="row")
        for (scores, gaps), (name, (cost, course)) in zip(grid.T, courses.items(), strict=True):
            scores.plot(cost, course.klom.mean(1), "o-", label="all stop together")
            scores.axhline(course.klom.min(0).mean(), color="C1", label="each point at its best")
            scores.axhline(floor, color="0.6", linestyle=":", label="floor")
            scores.set_title(name)
            gaps.plot(cost, course.gap, color="0.4", linewidth=0.7)
            gaps.axhline(0, color="0.6", linestyle=":")
            gaps.set_yscale("symlog", linthresh=2.0)
            gaps.set_xlabel("cost in retrainings")
        grid[0, 0].set_ylabel("mean KLOM on the forget set")
        grid[1, 0].set_ylabel("margin - oracles', in deviations")
        grid[0, 0].legend(fontsize="small")
