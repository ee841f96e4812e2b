"""`jaxunlearn compact`: trains a small network; `compact predict` asks it."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxunlearn import compact
from jaxunlearn.cli import drawing, study
from jaxunlearn.cli.console import check_json, found, guarded, printer, write_json
from jaxunlearn.compact.study import Job, Settings

if TYPE_CHECKING:
    from jaxunlearn.core.study import Where


@dataclasses.dataclass(frozen=True)
class Compact:
    """Trains a small network of two branches, fuses and unfreezes it, measures and exports it.

    `jaxunlearn compact predict MODEL IMAGE...` asks a network that was trained.

    Attributes:
        settings: what is trained.
        place: where.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    place: Annotated[study.Place, tyro.conf.arg(name="")] = study.Place()


@dataclasses.dataclass(frozen=True)
class Predict:
    """What a trained network says of image files.

    Attributes:
        model: `model.safetensors` or `model-int8.safetensors` of a run.
        images: PNG or JPEG files.
        resize: scale images of other sizes than the network reads, as `--size` did in training.
        json: also write the answers to this file.
    """

    model: Annotated[Path, tyro.conf.Positional]
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    resize: tyro.conf.FlagCreatePairsOff[bool] = False
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn compact`; returns the exit code."""
    command = ["compact", *argv]
    if argv[:1] == ["predict"]:
        wanted = study.parse(Predict, "compact predict", argv[1:])
        return guarded(lambda: predict(wanted, printer()), study.shell(command))
    options = study.parse(Compact, "compact", argv)
    return study.run(command, options, prepare, compact.study.execute, show)


def prepare(options: Compact, where: "Where") -> Job:
    """Checks everything that can be wrong."""
    import jax

    if jax.process_count() > 1:
        raise ValueError("processes: `compact` runs in one process, on as many devices as it has")
    job = compact.study.prepare(options.settings, where)
    study.say(found(job.dataset))
    return job


def show(job: Job, results: dict[str, Any], console: Console) -> str:
    """Draws the figure and prints the table; returns what the folder holds."""
    draw(results, job.folder.path / "figure.png")
    console.print(table(results))
    return "results.json, figure.png, model.safetensors, model-int8.safetensors, model.stablehlo"


def predict(wanted: Predict, console: Console) -> None:
    """Prints a line for each image, and writes the answers where they are wanted."""
    from jaxunlearn.data import images as read_images

    check_json(wanted.json)
    if not wanted.images:
        raise ValueError("images is empty; at least one file is needed")
    architecture, params = compact.files.load(wanted.model)
    x = read_images(wanted.images, architecture.input_shape, resize=wanted.resize)
    names = architecture.classes or tuple(map(str, range(architecture.n_classes)))
    answers = []
    all_logits = compact.measure.logits_of(architecture.model, params, x)
    for file, logits in zip(wanted.images, all_logits, strict=True):
        odds = np.exp(logits - logits.max())
        odds = odds / odds.sum()
        best = int(logits.argmax())
        answers.append({"file": str(file), "class": names[best], "probabilities": odds.tolist()})
        line = f"{file}: {names[best]} ({100 * odds[best]:.1f} %)"
        console.print(line, markup=False, highlight=False)
    write_json(wanted.json, answers)


def table(results: dict[str, Any]) -> Table:
    """What a network reaches and what it costs."""
    rows = {
        "test accuracy": f"{100 * results['test_accuracy']:.2f} %",
        "of each model": ", ".join(f"{100 * value:.2f}" for value in results["test_accuracies"]),
        "in int8": f"{100 * results['int8_test_accuracy']:.2f} %",
        "parameters": f"{results['parameters']:,}",
        "multiply-adds of an image": f"{results['multiply_adds']:,}",
        "bytes of the weights": f"{results['weight_bytes']:,}",
        "with the optimizer": f"{results['training_bytes']:,}",
    }
    rows |= {f"bytes of {name}": f"{size:,}" for name, size in results["file_bytes"].items()}
    speed = results["speed"]
    rows["one image (p50, p99)"] = f"{speed['p50_ms']:.3f} ms, {speed['p99_ms']:.3f} ms"
    rows["images per second"] = f"{speed['images_per_second']:,.0f}"
    if "folds" in results:
        # The second row is of images that no stage before the folds has trained on.
        for name, label in (
            ("val_above_test", "all"),
            ("unseen_above_test", "not trained on before"),
        ):
            gaps = [100 * gap for gap in results["folds"][name] if gap is not None]
            shown = ", ".join(f"{gap:+.2f} points" for gap in gaps)
            rows[f"validation above test, folds 2 to K, {label}"] = shown or "-"
    out = Table("", "measured")
    for name, value in rows.items():
        out.add_row(name, value)
    return out


def draw(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the training of a small network by epoch, and its confusion matrix.

    Args:
        results: `results.json` of `compact.study.run`.
        path: where the PNG goes.
    """
    counts = np.array(results["confusion"])
    side = float(np.clip(0.3 * len(counts), 5, 30))  # inches, so that every cell has its number
    with drawing.figure(path, (8 + side, side + 0.5)) as figure:
        curves, matrix = figure.subplots(1, 2, width_ratios=[7.5, side])
        _draw_folds(curves, results, _draw_stages(curves, results))
        curves.axhline(
            results["test_accuracy"], color="0.4", linestyle=":", label="test, in the end"
        )
        curves.set(xlabel="epoch", ylabel="validation accuracy")
        curves.legend(fontsize="small")
        _draw_confusion(
            matrix, counts, results.get("classes") or list(map(str, range(len(counts))))
        )


def _draw_stages(axes: Any, results: dict[str, Any]) -> int:
    """The accuracies of what comes before the folds; returns how many epochs that took."""
    which, at = results["file_is_model"], 0
    for i in (1, 2) if "dual" in results else ():
        accuracy = results["dual"][f"accuracy_{i}"][which]
        at = len(accuracy)
        axes.plot(range(1, at + 1), accuracy, color=f"C{i - 1}", label=f"branch {i}")
    for number, stage in enumerate(results.get("unfreezing") or [results["slim"]]):
        accuracy = stage["accuracy"][which]
        epochs = range(at + 1, at + len(accuracy) + 1)
        label = "after each epoch" if number == 0 else None
        axes.plot(epochs, accuracy, color="C2", marker=".", label=label)
        axes.axvline(at + 0.5, color="0.8", zorder=0)
        at += len(accuracy)
    return at


def _draw_folds(axes: Any, results: dict[str, Any], at: int) -> None:
    """Independent folds lie above each other, continued ones follow on each other."""
    folds = results.get("folds", {"mode": "none", "curves": []})
    for number, fold in enumerate(folds["curves"]):
        accuracy = fold["accuracy"][results["file_is_model"]]
        epochs = range(at + 1, at + len(accuracy) + 1)
        label = f"folds, {folds['mode']}" if number == 0 else None
        axes.plot(epochs, accuracy, color="C3", linewidth=0.8, label=label)
        if number == 0 or folds["mode"] == "continued":
            axes.axvline(at + 0.5, color="0.8", zorder=0)
        at += len(accuracy) if folds["mode"] == "continued" else 0


def _draw_confusion(axes: Any, counts: np.ndarray, names: list[str]) -> None:
    axes.imshow(np.log1p(counts), cmap="Blues")
    axes.set(xlabel="answer", ylabel="class", title="test images", xticks=range(len(counts)))
    axes.set_xticks(range(len(counts)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(counts)), names)
    shade = np.log1p(counts) / max(np.log1p(counts.max()), 1)
    for (i, j), count in np.ndenumerate(counts):
        if count or len(counts) <= 12:  # zeros of many classes would hide the others
            color = "white" if shade[i, j] > 0.6 else "black"
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=color)
