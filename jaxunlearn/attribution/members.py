"""Datamodel ensembles: thousands of models on random subsets, and what they output.

A member is trained on the rows of its subset alone. Finished lanes go to a sink: `Outputs` keeps
every member's outputs on disk, `Moments` only the statistics that a regression needs. Both go on
after a kill, to the same bits.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.attribution import masks as subsets
from jaxunlearn.attribution._statistics import Statistics
from jaxunlearn.core import ensemble, finite, records, tree
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
    """All members' outputs in memory-mapped files, a flag per member saying whether it is there.

    The folder holds `outputs.npy` [M, ...], `completed.npy` bool [M], `masks.npy` bool [M, n] and
    `settings.json`.

    Attributes:
        path: the folder.
        outputs: [M, ...], on disk; rows that are not completed are 0.
        completed: bool [M].
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
            ValueError: the folder holds another run, or something else.
            DamagedError: a file is missing or has another shape.
        """
        masks, self.path = subsets.check(masks), Path(path)
        dtype = np.dtype(dtype)
        self.masks, self.keys, self.width, shape = masks, keys, width, tuple(shape)
        settings = _settings(masks, keys, width, record) | {"shape": shape, "dtype": dtype.name}
        with meshes.together():
            if _is_new(self.path, settings) and meshes.is_first():
                create = functools.partial(np.lib.format.open_memmap, mode="w+")
                create(self.path / "outputs.npy", dtype=dtype, shape=(len(masks), *shape)).flush()
                create(self.path / "completed.npy", dtype=bool, shape=(len(masks),)).flush()
                np.save(self.path / "masks.npy", masks)
                # Last: without it the folder is no store.
                records.write(self.path / "settings.json", settings)
        self.outputs = _mapped(self.path / "outputs.npy", (len(masks), *shape), dtype)
        self.completed = _mapped(self.path / "completed.npy", (len(masks),), np.dtype(bool))

    def __contains__(self, number: int) -> bool:
        return bool(self.completed[self._rows(number)].all())

    def write(self, number: int, block: dict[str, np.ndarray]) -> None:
        """Takes a lane; its flags are set once its outputs are on disk."""
        rows = self._rows(number)
        self.outputs[rows] = block["outputs"]
        self.outputs.flush()
        self.completed[rows] = True
        self.completed.flush()

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks [C, n] and outputs [C, ...] of the members that are completed."""
        rows = np.flatnonzero(self.completed)
        return self.masks[rows], self.outputs[rows]

    def _rows(self, number: int) -> slice:
        return slice(number * self.width, (number + 1) * self.width)


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
                records.write(self.path / "settings.json", settings)
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
    if file.exists():
        records.check_same(records.read(file), settings, str(path))
        return False
    of_a_kill = {"outputs.npy", "completed.npy", "masks.npy"}  # while they were made
    if path.exists() and (
        not path.is_dir()
        or any(f.name not in of_a_kill and not f.name.startswith(".") for f in path.iterdir())
    ):
        raise ValueError(f"{str(path)!r} is not empty and holds no run of members")
    if meshes.is_first():
        path.mkdir(parents=True, exist_ok=True)
    return True


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # "r+" would fill up a truncated file
        if meshes.is_first():
            array = np.lib.format.open_memmap(path, mode="r+")
    except (ValueError, OSError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise DamagedError(
            f"{path} is damaged: it is {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}"
        )
    return array
