"""Figures; matplotlib is imported when one is drawn."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import evaluate

_COLORS = (*(f"C{i}" for i in range(10)), "black", "gold", "navy", "lime", "salmon", "peru")
_COST = "cost in retrainings (hollow: with what all models share)"


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
        points = results["forget_set"]["indices"]
        unlearned = {name: margins[name][:, points] for name in margins}
    oracle = unlearned.pop("oracle")
    names = list(unlearned)
    figure = Figure(figsize=(12, 4 + 2 * -(-len(names) // 4)), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[4, 2 * -(-len(names) // 4)]
    )[:, 0]
    damage, cost = top.subplots(1, 2)
    colors = dict(zip(names, itertools.cycle(_COLORS), strict=False))
    for name in names:
        row = results["methods"][name]
        forget = row["klom"]["forget"]["mean"]
        damage.plot(row["klom"]["retain"]["mean"], forget, "o", color=colors[name], label=name)
        _with_and_without_shared(cost, row, colors[name])
    for axes in (damage, cost):
        axes.axhline(results["floor"]["forget"]["mean"], color="0.6", linestyle=":", zorder=0)
        axes.set_ylabel("mean KLOM on the forget set")
    damage.axvline(results["floor"]["retain"]["mean"], color="0.6", linestyle=":", zorder=0)
    damage.set(xlabel="mean KLOM on the retain set", title="forgetting and damage (dotted: floor)")
    top.legend(loc="outside right upper", fontsize="small")
    cost.set(xlabel=_COST, title="forgetting and cost")
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
        for (name, row), color in zip(
            result["methods"].items(), itertools.cycle(_COLORS), strict=False
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
    figure.savefig(path, dpi=110)


def trajectories(
    found: dict[str, tuple[list[float], evaluate.Trajectory]], floor: float, path: str | os.PathLike
) -> None:
    """Draws KLOM and the points' margins in the course of unlearning, a column per method.

    Args:
        found: `{method: (cost of each snapshot in retrainings, its trajectory on the forget set)}`.
        floor: mean KLOM of fresh oracles there.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(found), 6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(found), squeeze=False, sharey="row")
    for (scores, gaps), (name, (cost, own)) in zip(grid.T, found.items(), strict=True):
        scores.plot(cost, own.klom.mean(1), "o-", label="all stop together")
        scores.axhline(own.klom.min(0).mean(), color="C1", label="each point at its best")
        scores.axhline(floor, color="0.6", linestyle=":", label="floor")
        scores.set_title(name)
        gaps.plot(cost, own.gap, color="0.4", linewidth=0.7)
        gaps.axhline(0, color="0.6", linestyle=":")
        gaps.set_yscale("symlog", linthresh=2.0)
        gaps.set_xlabel("cost in retrainings")
    grid[0, 0].set_ylabel("mean KLOM on the forget set")
    grid[1, 0].set_ylabel("margin - oracles', in deviations")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def influences(
    targets: list[dict[str, Any]],
    x_train: np.ndarray,
    x_val: np.ndarray,
    path: str | os.PathLike,
) -> None:
    """Draws validation examples with the training examples that help and harm them most.

    Args:
        targets: as in the results of `unlearn.attribute.run`.
        x_train: training inputs [n, ...]: images [H, W, C] or [H, W], squares flattened to a row,
            or anything else, which is drawn as a line.
        x_val: validation inputs [m, ...].
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_side = len(targets[0]["helpful"])
    width = 1 + 2 * n_side
    figure = Figure(figsize=(1.1 * width, 1.35 * len(targets) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(targets), width, squeeze=False)
    for row, target in zip(grid, targets, strict=True):
        _draw(row[0], x_val[target["index"]], f"#{target['index']}: {target['label']}")
        for axes, own in zip(row[1:], [*target["helpful"], *target["harmful"]], strict=True):
            _draw(axes, x_train[own["index"]], f"{own['label']} ({own['effect']:+.2f})")
    figure.suptitle(
        f"validation example and class; its {n_side} most helpful and {n_side} most harmful "
        "training examples (effect on its margin)",
        fontsize="medium",
    )
    figure.savefig(path, dpi=110)


def paths(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws a path study: forgetting of every path, and how far paths and retrained models differ.

    One column for each loss. Lines are means over seeds; where there are several, bands reach from
    the least to the largest.

    Args:
        results: of `unlearn.paths.execute`.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses, steps = results["losses"], results["checks"]
    names = [" > ".join(order) for order in results["orders"]]
    figure = Figure(figsize=(4 * len(losses) + 2, 9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(losses), squeeze=False, sharex=True, sharey="row")
    for column, (loss, of_loss) in zip(grid.T, losses.items(), strict=True):
        label = np.array(of_loss["label_logp"])  # paths, seeds, checks
        fall, jeffreys = label[..., :1] - label, np.array(of_loss["jeffreys"])
        retrained = np.moveaxis(np.array(of_loss["distance_to_retrained"]), 0, -1)
        for i, name in enumerate(names):
            _band(column[0], steps, fall[i], _COLORS[i % len(_COLORS)], name)
            _band(column[2], steps, retrained[:, i], _COLORS[i % len(_COLORS)], name)
        for i, j in itertools.combinations(range(len(names)), 2):
            last = int(j == len(names) - 1 or i == len(names) - 1)
            # Paths are drawn apart by whether the last one, often the recent one, is of the pair.
            _band(column[1], steps, jeffreys[:, :, i, j].T, f"C{last}", None)
        column[0].set_title(loss)
        column[-1].set_xlabel("steps of unlearning")
        column[1].set_yscale("log")
        column[2].set_yscale("log")
    grid[0, 0].set_ylabel("forget score (fall of log p)")
    grid[1, 0].set_ylabel(f"Jeffreys divergence of pairs\n(orange: with {names[-1]})")
    grid[2, 0].set_ylabel("logit distance to the retrained model")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=90)


def deletions(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws exact unlearning under deletions: accuracy, systems alive, accuracy by stages.

    Args:
        results: of `experiments.s3t.images`: by seed, and by budget in each.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    quality, alive, stages = figure.subplots(1, 3)
    seeds = results["seeds"]
    for color, budget in zip(_COLORS, seeds[0]["budgets"], strict=False):
        own = [row["budgets"][budget] for row in seeds]
        for axes, name in ((quality, "accuracy"), (alive, "alive")):
            values = 100 * np.array([row[name] for row in own])
            _band(axes, np.arange(values.shape[1]), values, color, f"B = {budget}")
        alive.axvline(own[0]["expected"]["mean"], color=color, linestyle=":")
    quality.set(ylabel="accuracy, % (all shards dead: chance)", title="accuracy under deletions")
    alive.set(ylabel="systems alive, %", title="requests survived (dotted: expected)")
    for axes in (quality, alive):
        axes.set(xlabel="requests")
        axes.legend(fontsize="small")
    _by_stages(stages, seeds)
    figure.savefig(path, dpi=100)


def _by_stages(axes: Any, seeds: list[dict[str, Any]]) -> None:
    courses = {
        "top-down": [row["by_depth"]["s3t"]["ensemble"] for row in seeds],
        "top-down, one order": [row["top_down_one_order"]["ensemble"] for row in seeds],
        "bottom-up, one order": [row["by_depth"]["bottom_up"]["ensemble"] for row in seeds],
    }
    for color, (name, own) in zip(_COLORS, courses.items(), strict=False):
        _band(axes, np.arange(1, len(own[0]) + 1), 100 * np.array(own), color, name)
    lora = [max(row["by_depth"][k]["ensemble"] for k in ("lora_10", "lora_25")) for row in seeds]
    last = len(courses["top-down"][0])
    axes.plot(
        [1, last], [100 * np.mean(lora)] * 2, color="0.4", linestyle=":", label="ordinary LoRA"
    )
    axes.set(xlabel="stages left, k", ylabel="accuracy, %", title="F(k), ensembles of all shards")
    axes.set_xticks(range(1, last + 1))
    axes.legend(fontsize="small")


def _band(axes: Any, x: Any, values: np.ndarray, color: str, label: str | None) -> None:
    """The mean of [seeds, T] as a line, and what lies between the seeds."""
    axes.plot(x, values.mean(0), color=color, label=label)
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)


def linear_theory(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the linear theory of stage orders: bound, recency and two phase diagrams.

    Args:
        results: of `theory.linear_study.report`.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (course, recency), (size, overlap) = figure.subplots(2, 2)

    own = results["divergence"]["example"]
    start = max(own["holds_from_step"], 0)
    course.semilogy(own["distance"], label="distance of the two orders")
    course.semilogy(own["bound"], "C1:")
    steps = range(start, len(own["bound"]))
    course.semilogy(
        steps, own["bound"][start:], "C1", label="lower bound (dotted: before it holds)"
    )
    course.axhline(own["eps"], color="0.6", linestyle=":", label="eps")
    course.axvline(
        own["impossible_from_step"], color="0.6", label="no retrained model is eps-near both"
    )
    course.set(xlabel="step of ascent", title="A then B against B then A, while U is unlearned")
    course.set_ylabel("mean squared difference of predictions")
    course.legend(fontsize="small")

    scores = np.array(results["recency"]["forget_score"])
    recency.semilogy(range(1, 5), scores.T, color="C0", linewidth=0.6, alpha=0.4)
    recency.semilogy(range(1, 5), np.median(scores, axis=0), "o-", color="black", label="median")
    recency.set(xlabel="position of the forget set among four stages", xticks=range(1, 5))
    recency.set(
        ylabel="increase of its error by unlearning", title="the last stage is forgotten least"
    )
    recency.legend(fontsize="small")

    found = results["phases"]["size"]
    image = size.pcolormesh(found["lr"], found["k"], np.log10(found["rate"]), shading="nearest")
    figure.colorbar(image, ax=size, label="log10 of growth per step")
    size.set(xscale="log", xlabel="step size", ylabel="forget rows", yticks=found["k"][4::5])
    size.set_title("growth without a retain set")

    found = results["phases"]["overlap"]
    weights, rate = found["retain_weight"][1:], np.array(found["rate"])[:, 1:]  # without weight 0
    most = rate.max()
    image = overlap.pcolormesh(
        weights, found["overlap"], rate, cmap="RdBu_r", vmin=-most, vmax=most, shading="nearest"
    )
    figure.colorbar(image, ax=overlap, label="growth of log difference per step", extend="min")
    overlap.axvline(found["stops_at"], color="black", linestyle=":")
    overlap.set(xscale="log", xlabel="retain weight (dotted: stops divergence at overlap 1)")
    overlap.set(ylabel="overlap of forget and retain rows", title="growth against a retain set")
    figure.savefig(path, dpi=110)


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


def _with_and_without_shared(axes: Any, row: dict[str, Any], color: str) -> None:
    forget = row["klom"]["forget"]["mean"]
    axes.plot(row["cost"], forget, "o", color=color)
    if row["cost_shared"]:
        whole = row["cost"] + row["cost_shared"]
        axes.plot([row["cost"], whole], [forget] * 2, color=color, linewidth=0.7, alpha=0.6)
        axes.plot(whole, forget, "o", color=color, fillstyle="none")


def compact(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the training of a small network by epoch, and its confusion matrix.

    Args:
        results: `results.json` of `compact.job.run`.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    curves, matrix = figure.subplots(1, 2, width_ratios=[3, 2])
    which = results["file_is_model"]
    at = 0
    for i in (1, 2) if "dual" in results else ():
        own = results["dual"][f"accuracy_{i}"][which]
        curves.plot(range(1, len(own) + 1), own, color=f"C{i - 1}", label=f"branch {i}")
        at = len(own)
    for number, stage in enumerate(results.get("unfreezing") or [results["slim"]]):
        own = stage["accuracy"][which]
        label = "after each epoch" if number == 0 else None
        curves.plot(range(at + 1, at + len(own) + 1), own, color="C2", marker=".", label=label)
        curves.axvline(at + 0.5, color="0.8", zorder=0)
        at += len(own)
    # Independent folds lie above each other, continued ones follow on each other.
    folds = results.get("folds", {"mode": "none", "curves": []})
    for number, fold in enumerate(folds["curves"]):
        own = fold["accuracy"][which]
        label = f"folds, {folds['mode']}" if number == 0 else None
        curves.plot(range(at + 1, at + len(own) + 1), own, color="C3", linewidth=0.8, label=label)
        if number == 0 or folds["mode"] == "continued":
            curves.axvline(at + 0.5, color="0.8", zorder=0)
        at += len(own) if folds["mode"] == "continued" else 0
    curves.axhline(results["test_accuracy"], color="0.4", linestyle=":", label="test, in the end")
    curves.set(xlabel="epoch", ylabel="validation accuracy")
    curves.legend(fontsize="small")
    counts = np.array(results["confusion"])
    names = results.get("classes") or [str(i) for i in range(len(counts))]
    matrix.imshow(np.log1p(counts), cmap="Blues")
    matrix.set(xlabel="answer", ylabel="class", title="test images", xticks=range(len(counts)))
    matrix.set_xticks(range(len(counts)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    matrix.set_yticks(range(len(counts)), names)
    if len(counts) <= 12:
        for (i, j), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 20 else "black"
            matrix.text(j, i, str(count), ha="center", va="center", fontsize=7, color=color)
    figure.savefig(path, dpi=110)
