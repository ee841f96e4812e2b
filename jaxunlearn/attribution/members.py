"""Datamodel ensembles: thousands of models on random subsets, and what they output.

A member is trained on the rows of its subset alone. Finished lanes go to a sink: `Outputs` keeps
every member's outputs on disk, `Moments` only the statistics that a regression needs. Both go on
after a kill, to the same bits.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.attribution import masks as subsets
from jaxunlearn.attribution._statistics import Statistics
from jaxunlearn.core import configuration, disk, ensemble, finite, folders, records, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError

# train(shared, rows int [k], key) -> outputs, any shape: all logits on all targets, as a rule
Train = Callable[[Any, jax.Array, jax.Array], jax.Array]


def run(
    train: Train,
    shared: Any,
    sink: "Outputs | Moments",
    *,
    mode: ensemble.Mode = "vmap",
    mesh: Mesh | None = None,
    callback: Callable[[int], None] | None = None,
) -> None:
    """Trains a model on every subset of a sink and hands it the outputs.

    Args:
        train: a pure function of one member. Rows of a subset smaller than the largest end with -1,
            see `data.batches`.
        shared: inputs of all members: data, targets.
        sink: `Outputs` or `Moments`; it knows the members' subsets and keys.
        mode: see `core.ensemble.lanes`.
        mesh: devices with an axis `models`.
        callback: called with the number of members that are finished.

    Raises:
        ValueError: an empty subset.
        NonFiniteError: outputs that are not finite; the lanes before are kept.
    """
    ensemble.run(
        _outputs_of(train),
        shared,
        {"rows": subsets.tables(sink.masks), "key": sink.keys},
        width=sink.width,
        mode=mode,
        mesh=mesh,
        sink=sink,
        check=_check_finite,
        callback=callback,
    )


@functools.lru_cache(maxsize=64)  # the same function is the same program
def _outputs_of(train: Train) -> Callable:
    return lambda shared, member: {"outputs": train(shared, member["rows"], member["key"])}


def _check_finite(lane: dict[str, np.ndarray], first: int) -> None:
    finite.check_members("an output of member {}".format, lane["outputs"], first)


class Outputs:
    """All members' outputs in files, which are read through memory maps.

    The folder holds `outputs.npy` [M, ...], `checksums.npy` uint8 [M, 32], the SHA-256 of each
    member's outputs once they are there, `completed.npy` bool [M], which says the same in short,
    `masks.npy` bool [M, n] and `settings.json`. All room on the disk is taken at the start.

    Attributes:
        path: the folder.
        outputs: [M, ...], on disk; rows that are not completed are 0.
        completed: bool [M], on disk.
        masks: bool [M, n].
        keys: keys of the members, [M].
        width: members per lane.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        masks: np.ndarray,
        keys: jax.Array,
        shape: tuple[int, ...],
        *,
        width: int,
        dtype: Any = np.float32,
        record: dict[str, Any] | None = None,
    ):
        """Makes the files, or opens those of the same run.

        Args:
            path: a new or empty folder, or one with the outputs of the same masks, keys, shape,
                width, type and record.
            masks: 0/1 [M, n].
            keys: keys of the members, [M].
            shape: shape of one member's outputs.
            width: members per lane; part of what decides the bits.
            dtype: type of the stored outputs; float16 halves the file.
            record: rest of what decides the outputs (training settings, data hash), JSON-like.

        Raises:
            ValueError: the folder holds another run, one under another JAX configuration, a link,
                or something else.
            DamagedError: a file is missing, has another shape, or is not what was written.
            OSError: the disk has not as much room.
        """
        masks, self.path = subsets.check(masks), Path(path)
        dtype = np.dtype(dtype)
        self.masks, self.keys, self.width, shape = masks, keys, width, tuple(shape)
        settings = _settings(masks, keys, width, record) | {"shape": shape, "dtype": dtype.name}
        with meshes.together():
            is_new = _is_new(self.path, settings)
            if is_new and meshes.is_first():
                _create(self.path / "outputs.npy", (len(masks), *shape), dtype)
                _create(self.path / "checksums.npy", (len(masks), 32), np.dtype(np.uint8))
                _create(self.path / "completed.npy", masks.shape[:1], np.dtype(bool))
                with disk.replacing(self.path / "masks.npy") as file:
                    np.save(file, masks)
                # Last: without it the folder is no store.
                _record(self.path, settings)
            elif meshes.is_first():
                self._check(self._mapped("outputs", shape, dtype))
        self.outputs = self._mapped("outputs", shape, dtype)
        self.completed = self._mapped("completed", (), np.dtype(bool))

    def __contains__(self, number: int) -> bool:
        return bool(self.completed[self._rows(number)].all())

    def write(self, number: int, block: dict[str, np.ndarray]) -> None:
        """Takes a lane; its checksums are written once its outputs are on disk, flags last."""
        first = self._rows(number).start
        outputs = np.asarray(block["outputs"], self.outputs.dtype)
        self._put("outputs", first, outputs)
        self._put("checksums", first, np.stack([_checksum(row) for row in outputs]))
        self._put("completed", first, np.ones(len(outputs), bool))

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks [C, n] and outputs [C, ...] of the members that are completed."""
        rows = np.flatnonzero(self.completed)
        return self.masks[rows], self.outputs[rows]

    def _rows(self, number: int) -> slice:
        return slice(number * self.width, (number + 1) * self.width)

    def _mapped(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        return _mapped(self.path / f"{name}.npy", (len(self.masks), *shape), dtype)

    def _put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Writes rows of a file; through a memory map a full disk would end the process."""
        file = self.path / f"{name}.npy"
        disk.alone(file)
        header = self._mapped(name, rows.shape[1:], rows.dtype).offset
        with file.open("r+b") as opened:
            opened.seek(header + first * rows[0].nbytes)
            opened.write(np.ascontiguousarray(rows).tobytes())
            opened.flush()
            os.fsync(opened.fileno())

    def _check(self, outputs: np.ndarray) -> None:
        """Checks what is completed, and that the flags say so; raises a DamagedError."""
        flags = np.array(self._mapped("completed", (), np.dtype(bool)))
        if not (self.path / "checksums.npy").exists():  # of an earlier version
            self._sign(outputs, flags)
        checksums = self._mapped("checksums", (32,), np.dtype(np.uint8))
        is_there = np.any(checksums, axis=1)
        for member in np.flatnonzero(is_there):
            if not np.array_equal(_checksum(outputs[member]), checksums[member]):
                raise DamagedError(
                    f"{self.path / 'outputs.npy'} is damaged: the outputs of member {member} have "
                    f"another hash than checksums.npy says; delete {self.path} and resume"
                )
        if not np.array_equal(flags, is_there):  # a kill came between the two
            self._put("completed", 0, np.asarray(is_there))

    def _sign(self, outputs: np.ndarray, flags: np.ndarray) -> None:
        checksums = np.zeros((len(flags), 32), np.uint8)
        for member in np.flatnonzero(flags):
            checksums[member] = _checksum(outputs[member])
        with disk.replacing(self.path / "checksums.npy") as file:
            np.save(file, checksums)


class Moments:
    """Sufficient statistics of a regression on the masks, without the members' outputs.

    Lanes are added in order, and the statistics are saved from time to time: after a kill the lanes
    since then are computed again, and the sums come out with the same bits.

    Attributes:
        path: the folder; it holds `00000.npz` and `settings.json`.
        masks: bool [M, n].
        keys: keys of the members, [M].
        width: members per lane.
        statistics: sums over the lanes added so far, outputs flattened to [T]; None before the
            first. Of several processes the first one has them.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        masks: np.ndarray,
        keys: jax.Array,
        *,
        width: int,
        every: int = 50,
        record: dict[str, Any] | None = None,
    ):
        """Begins, or goes on with the statistics of the same run.

        Args:
            path: a new or empty folder, or one with the moments of the same run.
            masks: 0/1 [M, n].
            keys: keys of the members, [M].
            width: members per lane; part of what decides the bits.
            every: lanes between savings; the last lane always saves.
            record: rest of what decides the outputs, JSON-like.

        Raises:
            ValueError: the folder holds another run, or something else.
            DamagedError: the file is damaged.
        """
        self.masks, self.keys, self.width = subsets.check(masks), keys, width
        self.path, self._every, self._lanes = Path(path), every, 0
        self.statistics: Statistics | None = None
        with meshes.together():
            settings = _settings(self.masks, keys, width, record)
            if _is_new(self.path, settings) and meshes.is_first():
                _record(self.path, settings)
        self._store = BlockStore(self.path)
        if 0 in self._store:
            saved = self._store.read(0)
            self._lanes = int(saved.pop("lanes"))
            self.statistics = Statistics(int(saved.pop("count")), **saved)

    def __contains__(self, number: int) -> bool:
        return number < self._lanes

    def write(self, number: int, block: dict[str, np.ndarray]) -> None:
        """Adds the next lane."""
        if number != self._lanes:
            raise ValueError(f"lane is {number}, but the next one to add is {self._lanes}")
        at = number * self.width
        outputs = np.asarray(block["outputs"])
        outputs, masks = outputs.reshape(len(outputs), -1), self.masks[at : at + len(outputs)]
        if self.statistics is None:
            self.statistics = Statistics.of(masks, outputs)
        else:
            self.statistics.add(masks, outputs)
        self._lanes += 1
        if at + self.width >= len(self.masks) or self._lanes % self._every == 0:
            fields = vars(self.statistics) | {"lanes": self._lanes}
            self._store.write(0, {name: np.asarray(value) for name, value in fields.items()})


def _settings(masks: np.ndarray, keys: jax.Array, width: int, record: Any) -> dict[str, Any]:
    if keys.shape != masks.shape[:1]:
        raise ValueError(f"keys are {list(keys.shape)}; [{len(masks)}] is needed, one per member")
    return {
        "members": len(masks),
        "masks_sha256": tree.digest(masks),
        "keys_sha256": tree.digest(np.asarray(jax.random.key_data(keys))),
        "width": width,
        "record": record or {},
    }


def _is_new(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a sink is to be made; raises if there is another one, or something else."""
    file = path / "settings.json"
    if path.is_dir():
        folders.check_own(path)
    if file.exists():
        before = records.read_signed(file)
        configuration.check(before.pop("configuration", None), str(path))
        records.check_same(before, settings, str(path))
        return False
    names = ("outputs", "checksums", "completed", "masks")
    of_a_kill = {f"{name}.npy" for name in names}  # while they were made
    if path.exists() and (
        not path.is_dir()
        or any(f.name not in of_a_kill and not f.name.startswith(".") for f in path.iterdir())
    ):
        raise ValueError(f"{str(path)!r} is not empty and holds no run of members")
    if meshes.is_first():
        path.mkdir(parents=True, exist_ok=True)
    return True


def _record(path: Path, settings: dict[str, Any]) -> None:
    now = configuration.current()
    records.write_signed(path / "settings.json", settings | {"configuration": now})


def _checksum(row: np.ndarray) -> np.ndarray:
    """SHA-256 of a member's outputs, uint8 [32]."""
    digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()
    return np.frombuffer(digest, np.uint8)


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """An array of zeros on disk, whose room is taken now."""
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with disk.replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, described)
        disk.allocate(file, file.tell() + int(np.prod(shape)) * dtype.itemsize)


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can make it raise almost anything
        raise DamagedError(f"{path} is damaged ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise DamagedError(
            f"{path} is damaged: it is {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}"
        )
    return array
