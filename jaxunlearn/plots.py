"""Figures; matplotlib is imported when one is drawn."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def comparison(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws a comparison: forgetting against damage, forgetting against cost, margin histograms.

    Args:
        folder: the output folder of `unlearn.comparison.run`.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = json.loads((Path(folder) / "results.json").read_text())
    with np.load(Path(folder) / "margins.npz") as margins:
        forget = results["forget_set"]["indices"]
        unlearned = {name: margins[name][:, forget] for name in margins}
    oracle = unlearned.pop("oracle")
    names = list(unlearned)
    figure = Figure(figsize=(12, 4 + 2 * -(-len(names) // 4)), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[4, 2 * -(-len(names) // 4)]
    )[:, 0]
    damage, cost = top.subplots(1, 2)
    colors = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for name in names:
        row = results["methods"][name]
        forget = row["klom"]["forget"]["mean"]
        damage.plot(row["klom"]["retain"]["mean"], forget, "o", color=colors[name], label=name)
        cost.plot(row["cost"], forget, "o", color=colors[name])
    for axes in (damage, cost):
        axes.axhline(results["floor"]["forget"]["mean"], color="0.6", linestyle=":", zorder=0)
        axes.set_ylabel("mean KLOM on the forget set")
    damage.axvline(results["floor"]["retain"]["mean"], color="0.6", linestyle=":", zorder=0)
    damage.set(xlabel="mean KLOM on the retain set", title="forgetting and damage (dotted: floor)")
    top.legend(loc="outside right upper", fontsize="small")
    cost.set(xlabel="cost, relative to one retraining", title="forgetting and cost")
    cost.set_xscale("symlog", linthresh=0.01)
    cost.set_xlim(left=-0.001)

    grid = bottom.subplots(-(-len(names) // 4), 4, squeeze=False, sharex=True, sharey=True).ravel()
    pooled = np.concatenate([oracle.ravel(), *(m.ravel() for m in unlearned.values())])
    low, high = np.percentile(pooled, [0.5, 99.5])
    edges = np.linspace(low, high, 60)
    for axes, name in zip(grid, names, strict=False):
        axes.hist(oracle.ravel(), edges, density=True, color="0.75", label="oracle")
        axes.hist(unlearned[name].ravel(), edges, density=True, histtype="step", color=colors[name])
        axes.set_title(name, fontsize="small")
        axes.set_yticks([])
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    bottom.supxlabel("margin on the forget set (grey: oracles), all models pooled")
    figure.savefig(path, dpi=110)


def trade_offs(results: dict[str, dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws forgetting against damage and against cost for several comparisons side by side.

    Args:
        results: `{title: results.json of a comparison}`, with the same methods.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(results) + 2, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(results), squeeze=False, sharey=True)
    for (damage, cost), (title, result) in zip(grid.T, results.items(), strict=True):
        floor = result["floor"]
        for i, (name, row) in enumerate(result["methods"].items()):
            forget = row["klom"]["forget"]["mean"]
            damage.plot(row["klom"]["val"]["mean"], forget, "o", color=f"C{i % 10}", label=name)
            cost.plot(row["cost"], forget, "o", color=f"C{i % 10}")
        for axes in (damage, cost):
            axes.axhline(floor["forget"]["mean"], color="0.6", linestyle=":", zorder=0)
        damage.axvline(floor["val"]["mean"], color="0.6", linestyle=":", zorder=0)
        damage.set(title=title, xlabel="mean KLOM on validation (dotted: floor)")
        cost.set_xlabel("cost, relative to one retraining")
        cost.set_xscale("symlog", linthresh=0.01)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean KLOM on the forget set")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
