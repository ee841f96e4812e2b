"""jaxunlearn: machine unlearning, compared with retraining.

usage: jaxunlearn VERB [options]

  unlearn    many models forget by several methods, and retrained oracles judge them

`jaxunlearn VERB --help` lists a verb's options.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxunlearn import __version__, plots
from jaxunlearn.core import mesh
from jaxunlearn.core.checkpoint import DamagedError, replacing
from jaxunlearn.unlearn import METHODS, comparison
from jaxunlearn.unlearn.report import table

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes

# One group of options per method that has settings: --scrub.learning-rate and so on.
_MethodSettings = dataclasses.make_dataclass(
    "_MethodSettings",
    [
        (name, type(own), dataclasses.field(default=own))
        for name, (_, own) in METHODS.items()
        if name != "retrain" and dataclasses.fields(own)
    ],
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Unlearn:
    """Many models forget by several methods, and retrained oracles judge them.

    Attributes:
        settings: what is compared.
        methods: which methods run; `none` and `retrain` always do.
        own: each method's own settings.
        out: output folder; by default a new one under `runs/`.
        resume: go on with the run in `out`, if there is one.
        json: also write the results to this file.
        devices: devices to use; by default all, and on a CPU one per core.
    """

    settings: Annotated[comparison.Settings, tyro.conf.arg(name="")] = comparison.Settings()
    methods: tuple[str, ...] = tuple(METHODS)
    own: Annotated[_MethodSettings, tyro.conf.arg(name="")] = _MethodSettings()  # type: ignore[valid-type]
    out: Path | None = None
    resume: bool = False
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    devices: int | None = None


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0, 1 (a run failed), 2 (bad input, nothing written), 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else argv
    verbs = {"unlearn": (Unlearn, unlearn)}
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return OK
    if argv[:1] == ["--version"]:
        print(__version__)
        return OK
    if not argv or argv[0] not in verbs:
        return _error(f"verb is {argv[0] if argv else ''!r}; known verbs: {', '.join(verbs)}")
    options, verb = verbs[argv[0]]
    return verb(tyro.cli(options, args=argv[1:], prog=f"jaxunlearn {argv[0]}"), argv)


def unlearn(options: Unlearn, argv: list[str]) -> int:
    """The verb `unlearn`; returns the exit code. `argv` is kept with the results."""
    out = options.out or Path("runs") / time.strftime("unlearn-%Y%m%d-%H%M%S")
    try:
        methods = _chosen_methods(options)
        _check_json(options.json, out)
        if options.resume and options.out is None:
            raise ValueError("resume needs out, the folder of the run to go on with")
        devices = _devices(options.devices)
        job = comparison.prepare(options.settings, methods, out=out, resume=options.resume)
        _keep_command(argv, out)
    except (ValueError, OSError) as error:
        return _error(str(error))

    console = Console(stderr=True)
    try:
        with _Bar(console, list(job.methods)) as bar:
            comparison.execute(job, mesh=devices, progress=bar.update)
        _publish(options.json, out)
    except KeyboardInterrupt:
        console.print(
            "interrupted; finished models are kept. Go on with the same options and:\n"
            f"  --out {shlex.quote(str(out))} --resume"
        )
        return INTERRUPTED
    except (comparison.NonFiniteError, DamagedError, OSError) as error:
        _error(str(error))
        if isinstance(error, comparison.NonFiniteError) and (out / "results.json").exists():
            _publish(options.json, out)
        return FAILED
    return OK


def _devices(wanted: int | None) -> Mesh:
    """A mesh of the wanted number of devices; by default all, and on a CPU one per core."""
    if wanted is not None:
        mesh.start(wanted)
        return mesh.make({"models": wanted})
    with contextlib.suppress(ValueError):  # JAX already runs in this process: take what it has
        mesh.start(mesh.cores())
    return mesh.make()


def _chosen_methods(options: Unlearn) -> dict[str, tuple[Any, Any]]:
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"method is {unknown[0]!r}; known methods: {', '.join(METHODS)}")
    chosen = {"none", "retrain", *options.methods}
    for field in dataclasses.fields(_MethodSettings):
        if field.name not in chosen and getattr(options.own, field.name) != field.default:
            raise ValueError(f"settings of {field.name} are given, but it is not among the methods")
    return {
        name: (method, getattr(options.own, name, default))
        for name, (method, default) in METHODS.items()
        if name in chosen
    }


def _publish(json_file: Path | None, out: Path) -> None:
    """Prints the results as a table, draws the figure and writes the requested JSON."""
    written = (out / "results.json").read_bytes()
    results = json.loads(written)
    plots.comparison(out, out / "figure.png")
    if json_file is not None:
        with replacing(json_file) as file:
            file.write(written)
    Console(width=None if sys.stdout.isatty() else 120).print(table(results))
    print(f"results.json, figure.png, margins.npz and settings.json are in {out}")


def _keep_command(argv: list[str], out: Path) -> None:
    """Leaves the command line that began a run in its folder."""
    if not (out / "command.txt").exists():
        with replacing(out / "command.txt") as file:
            file.write((shlex.join(["jaxunlearn", *argv]) + "\n").encode())


def _check_json(path: Path | None, out: Path) -> None:
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not (folder == out.absolute() or os.access(folder, os.W_OK)):
        raise ValueError(f"json is {str(path)!r}; a file in a folder that can be written is needed")


def _error(message: str) -> int:
    print(f"jaxunlearn: error: {message}", file=sys.stderr)
    return USAGE


class _Bar:
    """One bar over all phases, with the time that is left."""

    # Training a model from scratch takes about three times as long as unlearning one.
    _TRAINING = ("full", "oracle", "retrain")

    def __init__(self, console: Console, methods: list[str]):
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        phases = ("full", "oracle", *methods, "evaluation")
        self.weights = {phase: 3.0 if phase in self._TRAINING else 1.0 for phase in phases}
        self.finished = dict.fromkeys(self.weights, 0.0)
        self.task = self.progress.add_task("", total=sum(self.weights.values()))

    def update(self, phase: str, done: int, total: int) -> None:
        """Shows that `done` of `total` models of a phase are finished."""
        self.finished[phase] = self.weights[phase] * done / total
        description = f"{phase} {done}/{total}"
        self.progress.update(
            self.task, completed=sum(self.finished.values()), description=description
        )

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()
