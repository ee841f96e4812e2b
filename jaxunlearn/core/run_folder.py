"""The output folder of a run: its settings, finished lanes, times and results.

All processes of a run share it; the first one writes, and holds it against other runs.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxunlearn
from jaxunlearn.core import configuration, folders, mesh, records, streams, tree
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError, replacing, write_npz

# progress(phase, members finished, members in all)
Progress = Callable[[str, int, int], None]
_MOST_SECONDS = 1e12  # what says more is no time


class RunFolder:
    """One run's folder; making one checks that it is new, or belongs to this very run.

    Nothing is written before `begin`, from which on to `end` no other process can begin.

    Attributes:
        path: the folder.
        seconds: wall time by phase and kind ("compile", "run"), summed over interruptions; what a
            damaged file says of it is forgotten.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        record: dict[str, Any],
        methods: dict[str, dict[str, Any]],
        resume: bool,
        renamed: Mapping[str, str] | None = None,
    ):
        """Looks at a folder.

        Args:
            path: new, empty, or (with `resume`) that of a run with the same record.
            record: settings and versions that decide a run's numbers, JSON-like.
            methods: the methods' own settings, by name; compared where lanes are finished.
            resume: whether to go on with a run that is there; without one it begins.
            renamed: settings that had other names in earlier runs, see `records.renamed`.

        Raises:
            ValueError: the folder does not fit: it holds something else, a link, or a run of other
                settings, versions or JAX configuration (see `configuration`).
            DamagedError: a record is damaged; it is named.
        """
        self.path = Path(path)
        self._held: folders.Held | None = None
        begun = self.path / "settings.json"
        name = str(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out is {name!r}, which is a file; name a folder")
        occupied = self.path.exists() and any(
            not file.name.startswith(".settings.json.") for file in self.path.iterdir()
        )
        if occupied and not begun.exists():
            raise ValueError(f"out is {name!r}, which is not empty and holds no run")
        if occupied and not resume:
            raise ValueError(
                f"out is {name!r}, which holds a run; resume it, or choose another folder"
            )
        if occupied:
            folders.check_own(self.path)
            before = records.read_signed(begun)
            configuration.check(before.pop("configuration", None), name)
            if "settings" in before:
                before["settings"] = records.renamed(before["settings"], renamed or {})
            records.check_same(before, record, name)
            for method, settings in methods.items():
                if list(self._method_path(method).glob("*.npz")):
                    before = records.read_signed(self._method_path(method) / "settings.json")
                    records.check_same({method: before}, {method: settings}, name)
        self._record = None if occupied else record | {"configuration": configuration.current()}
        self.seconds = _seconds_in(self.path / "seconds.json")

    def begin(self) -> None:
        """Takes the folder for this process, and records the settings of a run that is new.

        Raises:
            ValueError: the folder cannot be made or written to, or another process works in it.
        """
        if not mesh.is_first():
            return
        name = str(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = folders.hold(self.path, f"another process works on the run in {name!r}")
            folders.sweep(self.path)
            if self._record is None:
                return
            if (self.path / "settings.json").exists():
                raise ValueError(f"out is {name!r}, where another process has just begun a run")
            records.write_signed(self.path / "settings.json", self._record)
        except OSError as error:
            raise ValueError(f"out is {name!r}, which cannot be written: {error}") from error

    def end(self) -> None:
        """Leaves the folder to other processes."""
        self._held = None

    def lanes(self, phase: str) -> BlockStore:
        """The finished lanes of a training phase."""
        return BlockStore(self.path / "lanes" / phase)

    def method_lanes(self, method: str, settings: dict[str, Any]) -> BlockStore:
        """The finished lanes of a method; its settings are recorded beside them."""
        store = BlockStore(self._method_path(method))
        if mesh.is_first():
            store.path.mkdir(parents=True, exist_ok=True)
            records.write_signed(store.path / "settings.json", settings)
        return store

    def _method_path(self, method: str) -> Path:
        return self.path / "lanes" / "methods" / method

    def write_json(self, name: str | Path, content: Any) -> None:
        """Writes a file at once; a number that JSON does not know is an error."""
        if mesh.is_first():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            records.write(self.path / name, content)

    def write_text(self, name: str, content: str) -> None:
        """Writes a file at once."""
        if mesh.is_first():
            with replacing(self.path / name) as file:
                file.write(content.encode())

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes an `.npz` at once."""
        if mesh.is_first():
            write_npz(self.path / name, arrays)

    def add_seconds(self, phase: str, kind: str, seconds: float) -> None:
        """Adds to the time of a phase."""
        of_phase = self.seconds.setdefault(phase, {"compile": 0.0, "run": 0.0})
        of_phase[kind] += seconds
        if mesh.is_first():
            records.write_signed(self.path / "seconds.json", self.seconds)


def _seconds_in(file: Path) -> dict[str, dict[str, float]]:
    """The times of a run so far; nothing but a notice if they are damaged."""
    if not file.exists():
        return {}
    try:
        seconds = records.read_signed(file)
        if not all(map(_are_times, seconds.values())):
            raise DamagedError(f"{file} is damaged (it holds no times)")
        return seconds
    except DamagedError as error:
        streams.tell(f"jaxunlearn: {error}; times are counted anew")
        return {}


def _are_times(phase: Any) -> bool:
    kinds = isinstance(phase, dict) and set(phase) == {"compile", "run"}
    return kinds and all(
        type(seconds) in (int, float) and 0 <= seconds < _MOST_SECONDS  # false of NaN, too
        for seconds in phase.values()
    )


def run_record(settings: Any, **hashed: tree.Tree) -> dict[str, Any]:
    """What must be equal for a run to go on: settings, data and versions.

    Methods' own settings are recorded with each method's lanes, so that methods can be added, left
    out or, as long as they have no finished lane, changed.

    Args:
        settings: a dataclass.
        hashed: arrays that matter, such as the data; of each its hash is kept, by name.
    """
    hashes = {f"{name}_sha256": tree.digest(arrays) for name, arrays in hashed.items()}
    return {"settings": dataclasses.asdict(settings) | hashes, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of everything whose change may change bits."""
    return {
        "jaxunlearn": jaxunlearn.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def ticking(folder: RunFolder, phase: str, total: int, progress: Progress) -> Callable[[int], None]:
    """A callback for lanes that keeps the time of a phase and reports its progress.

    It gets the number of members finished; the time since a call with the same number went to
    compiling.
    """
    last, before = time.perf_counter(), -1

    def tick(done: int) -> None:
        nonlocal last, before
        now = time.perf_counter()
        if before >= 0:
            folder.add_seconds(phase, "compile" if done == before else "run", now - last)
        last, before = now, done
        progress(phase, done, total)

    return tick
