"""`jaxunlearn compact`: trains a small network; `compact predict` asks it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli.console import OK, error
from jaxunlearn.compact import files, measure
from jaxunlearn.core.disk import replacing
from jaxunlearn.data import images as read_images


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

    def run(self, console: Console) -> Any:
        """Prints a line for each image."""
        if not self.images:
            raise ValueError("images is empty; at least one file is needed")
        architecture, params = files.load(self.model)
        x = read_images(self.images, architecture.input_shape, resize=self.resize)
        logits = measure.logits_of(architecture.model, params, x)
        names = architecture.classes or tuple(map(str, range(architecture.n_classes)))
        found = []
        for file, own in zip(self.images, logits, strict=True):
            odds = np.exp(own - own.max())
            odds = odds / odds.sum()
            best = int(own.argmax())
            found.append({"file": str(file), "class": names[best], "probabilities": odds.tolist()})
            line = f"{file}: {names[best]} ({100 * odds[best]:.1f} %)"
            console.print(line, markup=False, highlight=False)
        return found


def predict(argv: list[str]) -> int:
    """Runs `jaxunlearn compact predict`; returns the exit code, 0 or 2 (bad input)."""
    verb = tyro.cli(Predict, args=argv, prog="jaxunlearn compact predict")
    try:
        if verb.json is not None and not verb.json.absolute().parent.is_dir():
            raise ValueError(
                f"json is {str(verb.json)!r}; a file in a folder that exists is needed"
            )
        found = verb.run(Console(width=None if sys.stdout.isatty() else 120))
        if verb.json is not None:
            with replacing(verb.json) as file:
                file.write((json.dumps(found, indent=1) + "\n").encode())
    except (ValueError, OSError) as failure:
        return error(str(failure))
    return OK


def table(results: dict[str, Any]) -> Table:
    """What a network reaches and what it costs."""
    rows = {
        "test accuracy": f"{100 * results['test_accuracy']:.2f} %",
        "of each model": ", ".join(f"{100 * own:.2f}" for own in results["test_accuracies"]),
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
            gaps = [100 * own for own in results["folds"][name] if own is not None]
            shown = ", ".join(f"{own:+.2f} points" for own in gaps)
            rows[f"validation above test, folds 2 to K, {label}"] = shown or "-"
    found = Table("", "measured")
    for name, value in rows.items():
        found.add_row(name, value)
    return found
