"""A study: a long piece of work that is checked first, then done, and can be gone on with.

Every study has its settings (a frozen dataclass) and two functions:

- `prepare(settings, where) -> job` checks everything and writes nothing but the folder's record;
- `execute(job, progress) -> results` does the work, resumably, and writes `results.json` last.

`runner` makes the usual one call of both.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from jax.sharding import Mesh

from jaxunlearn.core import mesh as meshes
from jaxunlearn.core import typed
from jaxunlearn.core.run_folder import Progress, RunFolder

S = TypeVar("S")
J = TypeVar("J", bound="Job[Any]")
P = ParamSpec("P")
Run: TypeAlias = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a study happens.

    Attributes:
        out: output folder: new or empty, or (with `resume`) that of the same run.
        resume: whether to go on with the run in `out`, if there is one.
        mesh: devices; by default as few as the settings allow.
        data_dir: folder of prepared data sets; by default each kind has an environment variable.
    """

    out: Path
    resume: bool = False
    mesh: Mesh | None = None
    data_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class Job(Generic[S]):
    """Work whose settings have been checked and whose folder is ready.

    Attributes:
        settings: settings of the study.
        record: everything that decides the numbers, as in the folder's `settings.json`.
        folder: the output folder.
        mesh: the devices.
    """

    settings: S
    record: dict[str, Any]
    folder: RunFolder
    mesh: Mesh

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        return {"evaluation": 1.0}


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def begins(check: Callable[P, J]) -> Callable[P, J]:
    """Makes `prepare` of a function that checks everything and returns the job.

    Its first argument, the settings if it has any, is held against its declaration before that. The
    job's folder is begun afterwards. Of several processes all go on, or none.
    """
    first = next(iter(inspect.signature(check).parameters.values()), None)
    kind = None if first is None else first.annotation

    @functools.wraps(check)
    def prepare(*args: P.args, **kwargs: P.kwargs) -> J:
        with meshes.together():
            if first and isinstance(kind, type) and dataclasses.is_dataclass(kind):
                typed.check(first.name, [*args, *kwargs.values()][0], kind)
            job = check(*args, **kwargs)
        with meshes.together():
            job.folder.begin()
        return job

    return prepare


def runner(prepare: Callable[..., Any], execute: Run) -> Run:
    """The function `run` of a study."""

    def run(
        settings: Any,
        *more: Any,
        out: str | os.PathLike,
        resume: bool = False,
        mesh: Mesh | None = None,
        data_dir: str | os.PathLike | None = None,
        progress: Progress = quiet,
        **options: Any,
    ) -> dict[str, Any]:
        """Prepares and executes a study in one call; a run that was stopped goes on by `resume`.

        Args:
            settings: settings of the study.
            *more: further arguments of `prepare`, which come after `where`.
            out: output folder: new or empty, or (with `resume`) that of the same run.
            resume: whether to go on with the run in `out`, if there is one.
            mesh: devices; by default as few as the settings allow.
            data_dir: folder of prepared data sets.
            progress: called as `progress(phase, done, total)` while work is finished.
            **options: further named arguments of `prepare`.

        Returns:
            The contents of `results.json`.

        Raises:
            ValueError: bad settings or a folder that does not fit; nothing has been written then.
            NonFiniteError: a training diverged; what was finished before it is kept.
            ConnectionError: another process of the run died.
        """
        data_dir = None if data_dir is None else Path(data_dir)
        where = Where(Path(out), resume, mesh, data_dir)
        job = prepare(settings, where, *more, **options)
        try:
            return execute(job, progress)
        finally:
            job.folder.end()

    return run
