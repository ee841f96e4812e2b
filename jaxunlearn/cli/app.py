"""jaxunlearn: machine unlearning, compared with retraining.

usage: jaxunlearn VERB [options]

  unlearn    many models forget by several methods, and retrained oracles judge them
  attribute  which training points a model's answers depend on: datamodels and TRAK
  paths      language models trained in stages in different orders forget differently
  compact    a network of 15,000 parameters: two branches, fused, unfrozen, exported
  exact      a store that serves a model, deletes examples from it exactly, and proves it

`jaxunlearn VERB --help` lists a verb's options.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console

from jaxunlearn import __version__
from jaxunlearn.cli import compact as _compact_verb
from jaxunlearn.cli import exact as _exact_verb
from jaxunlearn.cli import figures
from jaxunlearn.cli.console import FAILED, INTERRUPTED, OK, USAGE, Bar, error
from jaxunlearn.compact import study as compact_job
from jaxunlearn.comparison import attribute
from jaxunlearn.comparison import study as comparison
from jaxunlearn.comparison.judging import lds_table, table
from jaxunlearn.core import mesh
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.errors import NonFiniteError
from jaxunlearn.core.run_folder import RunFolder, versions
from jaxunlearn.paths import study as paths
from jaxunlearn.paths.results import paths_table
from jaxunlearn.theory import linear_study
from jaxunlearn.unlearn import BASELINES, METHODS

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "main"]

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
class Processes:
    """Several processes do the run together: the same command in each, but for its number.

    They share the output folder, so it must lie on a file system that all of them see; the first
    one writes and speaks.

    Attributes:
        coordinator: `HOST:PORT` of the first process.
        processes: number of processes.
        process_id: number of this one, from 0.
        distributed: instead of these three, where JAX finds the cluster itself (a TPU pod slice,
            Slurm).
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None
    distributed: bool = False

    def arguments(self) -> dict[str, Any]:
        """Arguments for `mesh.start`, none for a single process.

        Raises:
            ValueError: options that do not fit together.
        """
        given = (self.coordinator, self.processes, self.process_id)
        if all(value is None for value in given):
            return {"coordinator_address": None} if self.distributed else {}
        if self.coordinator is None or self.processes is None or self.process_id is None:
            raise ValueError("coordinator, processes and process_id are needed together")
        if self.distributed:
            raise ValueError("distributed is given with a coordinator; one of them is needed")
        port = re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", self.coordinator)
        if port is None or not 1 <= int(port[1]) <= 65535:
            raise ValueError(f"coordinator is {self.coordinator!r}; HOST:PORT is needed")
        if self.processes < 1:
            raise ValueError(f"processes is {self.processes}; it must be at least 1")
        if not 0 <= self.process_id < self.processes:
            raise ValueError(
                f"process_id is {self.process_id}; 0 to {self.processes - 1} are allowed"
            )
        return {
            "coordinator_address": self.coordinator,
            "num_processes": self.processes,
            "process_id": self.process_id,
        }


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run happens.

    Attributes:
        out: output folder; by default a new one under `runs/`.
        resume: go on with the run in `out`, if there is one.
        json: also write the results to this file.
        data_dir: folder of prepared data sets; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`. Of texts, one that holds `tofu/` and `gsm8k/`; by default
            `$TOFU_DIR` and `$GSM8K_DIR`.
        devices: devices to use in each process; by default all, and on a CPU one per core (several
            processes on one CPU do not know of each other: give it there).
        cluster: several processes.
    """

    out: Path | None = None
    resume: bool = False
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    data_dir: Path | None = None
    devices: int | None = None
    cluster: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


@dataclasses.dataclass(frozen=True)
class Unlearn:
    """Many models forget by several methods, and retrained oracles judge them.

    Attributes:
        settings: what is compared.
        methods: which methods run, `none` and `retrain` always do; also known: oracle_matching,
            dm_direct and dmm, for which more models are trained (see `estimates`).
        own: each method's own settings.
        place: where.
    """

    settings: Annotated[comparison.Settings, tyro.conf.arg(name="")] = comparison.Settings()
    methods: tuple[str, ...] = tuple(BASELINES)
    own: Annotated[_MethodSettings, tyro.conf.arg(name="")] = _MethodSettings()  # type: ignore[valid-type]
    place: Annotated[Place, tyro.conf.arg(name="")] = Place()

    def devices(self, count: int) -> Mesh:
        """A mesh of so many devices."""
        return comparison.devices(self.settings, count)

    def prepare(self, **where: Any) -> comparison.Job:
        """Checks everything that can be wrong."""
        return comparison.prepare(self.settings, _chosen_methods(self), **where)

    execute = staticmethod(comparison.execute)

    @staticmethod
    def show(job: comparison.Job, results: dict[str, Any], console: Console) -> str:
        """Draws the figure and prints the table; returns what the folder holds."""
        figures.comparison(job.folder.path, job.folder.path / "figure.png")
        console.print(table(results))
        return "results.json, figure.png, margins.npz and settings.json"


@dataclasses.dataclass(frozen=True)
class Attribute:
    """Trains models on random subsets, regresses datamodels on them, and judges these and TRAK.

    Attributes:
        settings: what is attributed.
        place: where.
    """

    settings: Annotated[attribute.Settings, tyro.conf.arg(name="")] = attribute.Settings()
    place: Annotated[Place, tyro.conf.arg(name="")] = Place()

    def devices(self, count: int) -> Mesh:
        """A mesh of so many devices."""
        return mesh.make({"models": count})

    def prepare(self, **where: Any) -> attribute.Job:
        """Checks everything that can be wrong."""
        return attribute.prepare(self.settings, **where)

    execute = staticmethod(attribute.execute)

    @staticmethod
    def show(job: attribute.Job, results: dict[str, Any], console: Console) -> str:
        """Draws the figure and prints the scores; returns what the folder holds."""
        data = job.dataset
        figures.influences(
            results["targets"], data.x_train, data.x_val, job.folder.path / "figure.png"
        )
        console.print(lds_table(results))
        with_trak = ", trak.npz" if job.settings.checkpoints else ""
        return f"results.json, figure.png, datamodel.npz{with_trak} and settings.json"


@dataclasses.dataclass(frozen=True)
class Paths:
    """Trains a language model through the same stages in different orders, and lets each forget.

    Attributes:
        settings: what is studied.
        theory: draw the linear theory instead, which needs no model: the theorem's bound, the
            recency of four stages, and where ascent diverges.
        place: where.
    """

    settings: Annotated[paths.Settings, tyro.conf.arg(name="")] = paths.Settings()
    theory: bool = False
    place: Annotated[Place, tyro.conf.arg(name="")] = Place()

    def devices(self, count: int) -> Mesh:
        """A mesh of so many devices."""
        return paths.devices(self.settings, count)

    def prepare(self, **where: Any) -> "paths.Job | Theory":
        """Checks everything that can be wrong."""
        if not self.theory:
            return paths.prepare(self.settings, **where)
        if self.settings != paths.Settings():
            raise ValueError("theory is given with settings of a study; it has none")
        folder = RunFolder(where["out"], {"theory": "linear", "versions": versions()}, {}, False)
        folder.begin()
        return Theory(folder)

    @staticmethod
    def execute(job: "paths.Job | Theory", *, progress: comparison.Progress) -> dict[str, Any]:
        """Runs the study, or computes the theory."""
        if isinstance(job, Theory):
            results = linear_study.report()
            job.folder.write_json("results.json", results)
            return results
        return paths.execute(job, progress=progress)

    @staticmethod
    def show(job: "paths.Job | Theory", results: dict[str, Any], console: Console) -> str:
        """Draws the figure and prints the table; returns what the folder holds."""
        draw = figures.linear_theory if isinstance(job, Theory) else figures.paths
        draw(results, job.folder.path / "figure.png")
        if not isinstance(job, Theory):
            console.print(paths_table(results))
        return "results.json, figure.png and settings.json"


@dataclasses.dataclass(frozen=True)
class Theory:
    """What the verb `paths` does with `--theory`."""

    folder: RunFolder
    phases: dict[str, float] = dataclasses.field(default_factory=lambda: {"theory": 1.0})


@dataclasses.dataclass(frozen=True)
class Compact:
    """Trains a small network of two branches, fuses and unfreezes it, measures and exports it.

    `jaxunlearn compact predict MODEL IMAGE...` asks a network that was trained.

    Attributes:
        settings: what is trained.
        place: where.
    """

    settings: Annotated[compact_job.Settings, tyro.conf.arg(name="")] = compact_job.Settings()
    place: Annotated[Place, tyro.conf.arg(name="")] = Place()

    def devices(self, count: int) -> Mesh:
        """A mesh of so many devices."""
        return mesh.make({"models": count})

    def prepare(self, **where: Any) -> compact_job.Job:
        """Checks everything that can be wrong."""
        if jax.process_count() > 1:
            raise ValueError(
                "processes: `compact` runs in one process, on as many devices as it has"
            )
        return compact_job.prepare(self.settings, **where)

    execute = staticmethod(compact_job.execute)

    @staticmethod
    def show(job: compact_job.Job, results: dict[str, Any], console: Console) -> str:
        """Draws the figure and prints the table; returns what the folder holds."""
        figures.compact(results, job.folder.path / "figure.png")
        console.print(_compact_verb.table(results))
        return (
            "results.json, figure.png, model.safetensors, model-int8.safetensors, model.stablehlo"
        )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0, 1 (a run failed), 2 (bad input, nothing written), 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else argv
    verbs = {"unlearn": Unlearn, "attribute": Attribute, "paths": Paths, "compact": Compact}
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return OK
    if argv[:1] == ["--version"]:
        print(__version__)
        return OK
    if argv[:1] == ["exact"]:
        return _exact_verb.main(argv[1:])
    if argv[:2] == ["compact", "predict"]:
        return _compact_verb.predict(argv[2:])
    if not argv or argv[0] not in verbs:
        known = ", ".join([*verbs, "exact"])
        return error(f"verb is {argv[0] if argv else ''!r}; known verbs: {known}")
    verb = tyro.cli(verbs[argv[0]], args=argv[1:], prog=f"jaxunlearn {argv[0]}")
    return _work(verb, argv)


Verb: TypeAlias = Unlearn | Attribute | Paths | Compact


def _work(verb: Verb, argv: list[str]) -> int:
    """Does what a verb does; returns the exit code. `argv` is kept with the results."""
    place = verb.place
    out = place.out or Path("runs") / time.strftime(f"{argv[0]}-%Y%m%d-%H%M%S")
    try:
        devices = _devices(verb)
        with mesh.together():
            _check_json(place.json, out)
        job: Any = verb.prepare(out=out, resume=place.resume, mesh=devices, data_dir=place.data_dir)
        with mesh.together():
            _keep_command(argv, job.folder)
    except ConnectionError as failure:
        error(str(failure))
        return mesh.leave(FAILED)
    except (ValueError, OSError) as failure:
        return error(str(failure))

    console = Console(stderr=True, quiet=not mesh.is_first())
    try:
        with Bar(console, job.phases) as bar:
            verb.execute(job, progress=bar.update)
        with mesh.together():
            _publish(verb, job)
    except KeyboardInterrupt:
        console.print(
            "interrupted; finished models are kept. Go on with the same options and:\n"
            f"  --out {shlex.quote(str(out))} --resume"
        )
        return mesh.leave(INTERRUPTED)
    except NonFiniteError as failure:  # in all processes
        error(str(failure))
        with mesh.together():
            if (out / "results.json").exists():
                _publish(verb, job)
        return FAILED
    except ConnectionError as failure:
        error(f"{failure}; finished models are kept. Go on with --resume")
        return mesh.leave(FAILED)
    except (ArithmeticError, ValueError, OSError) as failure:
        error(str(failure))
        return mesh.leave(FAILED)
    return OK


def _devices(verb: Verb) -> Mesh:
    """All devices, or in each process the wanted number; the processes find each other here."""
    place = verb.place
    wanted, others = place.devices, place.cluster.arguments()
    if place.resume and place.out is None:
        raise ValueError("resume needs out, the folder of the run to go on with")
    if others and place.out is None:
        raise ValueError("several processes need out, the folder that they share")
    if wanted is not None or others:
        mesh.start(mesh.cores() if wanted is None else wanted, **others)
    else:
        with contextlib.suppress(ValueError):  # JAX already runs in this process: take what it has
            mesh.start(mesh.cores())
    if wanted is not None and wanted > jax.local_device_count():
        raise ValueError(f"devices is {wanted}, but there are {jax.local_device_count()}")
    n_devices = jax.device_count() if wanted is None else wanted * jax.process_count()
    return verb.devices(n_devices)


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


def _publish(verb: Verb, job: Any) -> None:
    """Shows the results and writes the requested JSON."""
    if not mesh.is_first():
        return
    written = (job.folder.path / "results.json").read_bytes()
    if verb.place.json is not None:
        with replacing(verb.place.json) as file:
            file.write(written)
    console = Console(width=None if sys.stdout.isatty() else 120)
    files = verb.show(job, json.loads(written), console)
    print(f"{files} are in {job.folder.path}")


def _keep_command(argv: list[str], folder: RunFolder) -> None:
    """Leaves the command line that began a run in its folder."""
    if not (folder.path / "command.txt").exists():
        folder.write_text("command.txt", shlex.join(["jaxunlearn", *argv]) + "\n")


def _check_json(path: Path | None, out: Path) -> None:
    if path is None:
        return
    folder = path.absolute().parent
    is_there = folder.is_dir() and os.access(folder, os.W_OK)
    if path.is_dir() or not (folder == out.absolute() or is_there):
        raise ValueError(f"json is {str(path)!r}; a file in a folder that can be written is needed")
