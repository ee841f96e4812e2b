"""The output folder of a run: its settings, finished lanes, times and results.

All processes of a run share it; the first one writes.
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
from jaxunlearn.core import mesh, records, tree
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import replacing, write_npz

# progress(phase, members finished, members in all)
Progress = Callable[[str, int, int], None]


class RunFolder:
    """One run's folder; making one checks that it is new, or belongs to this very run.

    Nothing is written before `begin`.

    Attributes:
        path: the folder.
        seconds: wall time by phase and kind ("compile", "run"), summed over interruptions.
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
            ValueError: the folder does not fit.
        """
        self.path = Path(path)
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
            before = records.read(begun)
            if "settings" in before:
                before["settings"] = records.renamed(before["settings"], renamed or {})
            records.check_same(before, record, name)
            for method, settings in methods.items():
                if list(self._method_path(method).glob("*.npz")):
                    before = records.read(self._method_path(method) / "settings.json")
                    records.check_same({method: before}, {method: settings}, name)
        self._record = None if occupied else record
        times = self.path / "seconds.json"
        self.seconds = records.read(times) if times.exists() else {}

    def begin(self) -> None:
        """Records the settings of a run that is not there yet.

        Raises:
            ValueError: the folder cannot be made or written to.
        """
        if self._record is None:
            return
        try:
            self.write_json("settings.json", self._record)
        except OSError as error:
            name = str(self.path)
            raise ValueError(f"out is {name!r}, which cannot be written: {error}") from error

    def lanes(self, phase: str) -> BlockStore:
        """The finished lanes of a training phase."""
        return BlockStore(self.path / "lanes" / phase)

    def method_lanes(self, method: str, settings: dict[str, Any]) -> BlockStore:
        """The finished lanes of a method; its settings are recorded beside them."""
        store = BlockStore(self._method_path(method))
        self.write_json(store.path.relative_to(self.path) / "settings.json", settings)
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
        self.write_json("seconds.json", self.seconds)


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
