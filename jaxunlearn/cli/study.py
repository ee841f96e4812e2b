"""The driver of long verbs: options, devices and processes, preparation, a bar, results, errors.

A verb is a dataclass of options with a field `place`, and three functions:

- `prepare(options, where) -> job` checks everything, see `core.study`;
- `execute(job, progress) -> results` does the work and leaves `results.json`;
- `show(job, results, console) -> str` draws, prints tables, and names the files of the folder.
"""

import contextlib
import dataclasses
import functools
import json
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from jaxunlearn.cli.console import (
    FAILED,
    OK,
    Bar,
    check_json,
    guarded,
    notices,
    printer,
    write_json,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from rich.console import Console

    from jaxunlearn.core.study import Where

Options = TypeVar("Options")


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


def parse(options: type[Options], verb: str, argv: list[str]) -> Options:
    """The options of a verb; a mistake in their form, or `--help`, ends the program."""
    return tyro.cli(options, args=argv, prog=f"jaxunlearn {verb}")


def shell(command: list[str]) -> str:
    """A command of `jaxunlearn` as it is typed."""
    return shlex.join(["jaxunlearn", *command])


def one_axis(options: Any, n_devices: int) -> "Mesh":
    """A mesh of one axis, `models`: what a verb gets that does not say otherwise."""
    from jaxunlearn.core import mesh

    return mesh.make({"models": n_devices})


def run(
    command: list[str],
    options: Any,
    prepare: "Callable[[Any, Where], Any]",
    execute: Callable[..., Any],
    show: "Callable[[Any, dict[str, Any], Console], str]",
    devices: "Callable[[Any, int], Mesh]" = one_axis,
) -> int:
    """Does what a long verb does.

    Args:
        command: the verb and its arguments, which are kept with the results.
        options: what `parse` made of them.
        prepare: makes a job of options and where they happen.
        execute: does a job, telling its progress.
        show: shows results.
        devices: a mesh for the options and a number of devices.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (bad input, nothing written), 130 (interrupted).
    """
    place = options.place
    out = place.out or Path("runs") / time.strftime(f"{command[0]}-%Y%m%d-%H%M%S")
    jobs: list[Any] = []

    def check() -> None:
        from jaxunlearn.core import mesh
        from jaxunlearn.core.study import Where

        on = _devices(place, functools.partial(devices, options))
        with mesh.together():
            check_json(place.json, made=out)
        jobs.append(prepare(options, Where(out, place.resume, on, place.data_dir)))
        with mesh.together():
            _keep_command(command, jobs[0].folder)

    def work() -> None:
        from jaxunlearn.core import mesh
        from jaxunlearn.core.checks import NonFiniteError

        try:
            # Only the first process shows the bar.
            with Bar(notices(quiet=not mesh.is_first()), jobs[0].phases) as bar:
                execute(jobs[0], bar.update)
        except NonFiniteError:  # in all processes; what was finished before is shown
            with mesh.together():
                if (out / "results.json").exists():
                    _publish(place, jobs[0], show)
            raise
        with mesh.together():
            _publish(place, jobs[0], show)

    again = _again(command, place, out)
    code = guarded(check, again)
    if code == OK:
        code = guarded(work, again, bad_input=FAILED)
    for job in jobs:
        job.folder.end()
    return code


def _again(command: list[str], place: Place, out: Path) -> str:
    """The command that goes on with a run."""
    more = [] if place.out else ["--out", str(out)]
    return shell([*command, *more, *([] if place.resume else ["--resume"])])


def _devices(place: Place, mesh_of: "Callable[[int], Mesh]") -> "Mesh":
    """All devices, or in each process the wanted number; the processes find each other here."""
    import jax

    from jaxunlearn.core import mesh

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
    return mesh_of(jax.device_count() if wanted is None else wanted * jax.process_count())


def say(*lines: str) -> None:
    """Tells, before the work starts, what was found; in the first process alone."""
    from jaxunlearn.core import mesh

    for line in lines:
        notices(quiet=not mesh.is_first()).print(line, soft_wrap=True)


def _publish(place: Place, job: Any, show: Callable[..., str]) -> None:
    """Shows the results and writes the requested JSON."""
    from jaxunlearn.core import mesh

    if mesh.is_first():
        written = (job.folder.path / "results.json").read_bytes()
        write_json(place.json, written)
        console = printer()
        files = show(job, json.loads(written), console)
        console.print(f"{files} are in {job.folder.path}", highlight=False, soft_wrap=True)


def _keep_command(command: list[str], folder: Any) -> None:
    """Leaves the command line that began a run in its folder."""
    if not (folder.path / "command.txt").exists():
        folder.write_text("command.txt", shell(command) + "\n")
