"""Datamodel ensembles: thousands of models on random subsets, and what they output.

A member is trained on the rows of its subset alone. Finished lanes go to a sink: `Outputs` keeps
every member's outputs on disk, `Moments` only the statistics that a regression needs. Both go on
after a kill, to the same bits.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.attribution import masks as subsets
from jaxunlearn.attribution._statistics import Statistics
from jaxunlearn.core import ensemble, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore, DamagedError, replacing

# train(shared, rows int [k], key) -> outputs, any shape: all logits on all targets, as a rule
Train = Callable[[Any, jax.Array, jax.Array], jax.Array]


class NonFiniteError(ArithmeticError):
    """A member's outputs are NaN or infinite; it is named."""


def run(
    train: Train,
    shared: Any,
    masks: np.ndarray,
    keys: jax.Array,
    sink: "Outputs | Moments",
    *,
    width: int,
    mode: ensemble.Mode = "vmap",
    mesh: Mesh | None = None,
    callback: Callable[[int], None] | None = None,
) -> None:
    """Trains a model on every subset and hands its outputs to a sink.

    Args:
        train: a pure function of one member. Rows of a subset smaller than the largest end with -1,
            see `data.batches`.
        shared: what all members read: data, targets.
        masks: 0/1 [M, n].
        keys: of the members, [M].
        sink: `Outputs` or `Moments`, made for these masks and `width`.
        width: members per lane; part of what decides the bits.
        mode: see `core.ensemble.lanes`.
        mesh: devices with an axis `models`.
        callback: called with the number of members that are finished.

    Raises:
        ValueError: an empty subset, or a sink for something else.
        NonFiniteError: outputs that are not finite; the lanes before are kept.
    """
    masks = subsets.check(masks)
    sink.check(masks, width)
    ensemble.run(
        _outputs_of(train),
        shared,
        {"rows": subsets.tables(masks), "key": keys},
        width=width,
        mode=mode,
        mesh=mesh,
        store=sink,
        check=_check_finite,
        callback=callback,
        keep=False,
    )


@functools.lru_cache(maxsize=64)  # the same function is the same program
def _outputs_of(train: Train) -> Callable:
    def one(shared, member):
        return {"outputs": train(shared, member["rows"], member["key"])}

    return one


def _check_finite(lane: dict[str, np.ndarray], first: int) -> None:
    good = np.isfinite(lane["outputs"]).reshape(len(lane["outputs"]), -1).all(1)
    if not good.all():
        raise NonFiniteError(
            f"member {first + int(np.flatnonzero(~good)[0])} gives outputs that are not finite"
        )


class Outputs:
    """All members' outputs in memory-mapped files, a flag per member saying whether it is there.

    The folder holds `outputs.npy` [M, ...], `completed.npy` bool [M], `masks.npy` bool [M, n] and
    `settings.json`.

    Attributes:
        path: the folder.
        outputs: [M, ...], on disk; rows that are not completed are 0.
        completed: bool [M].
        masks: bool [M, n].
    """

    def __init__(
        self,
        path: str | os.PathLike,
        masks: np.ndarray,
        shape: tuple[int, ...],
        *,
        width: int,
        dtype: Any = np.float32,
        record: dict[str, Any] | None = None,
    ):
        """Makes the files, or opens those of the same run.

        Args:
            path: a new or empty folder, or one with a store of the same masks, shape, width, type
                and record.
            masks: 0/1 [M, n].
            shape: of one member's outputs.
            width: members per lane.
            dtype: of the stored outputs; float16 halves the file.
            record: what else decides the outputs (training settings, data hash), JSON-like.

        Raises:
            ValueError: the folder holds another run's store, or something else.
            DamagedError: a file is missing or has another shape.
        """
        masks, self.path = subsets.check(masks), Path(path)
        dtype = np.dtype(dtype)
        self._width, shape = width, tuple(shape)
        settings = _settings(masks, width, record) | {"shape": shape, "dtype": dtype.name}
        with meshes.together():
            if _is_new(self.path, settings) and meshes.is_first():
                create = functools.partial(np.lib.format.open_memmap, mode="w+")
                create(self.path / "outputs.npy", dtype=dtype, shape=(len(masks), *shape)).flush()
                create(self.path / "completed.npy", dtype=bool, shape=(len(masks),)).flush()
                np.save(self.path / "masks.npy", masks)
                _write_settings(self.path, settings)  # last: without it the folder is no store
        self.masks = masks
        self.outputs = _mapped(self.path / "outputs.npy", (len(masks), *shape), dtype)
        self.completed = _mapped(self.path / "completed.npy", (len(masks),), np.dtype(bool))

    def check(self, masks: np.ndarray, width: int) -> None:
        """Raises a ValueError unless the store is of these masks and this width."""
        if width != self._width or not np.array_equal(masks, self.masks):
            raise ValueError(f"the store in {str(self.path)!r} is of other masks or another width")

    def __contains__(self, number: int) -> bool:
        return bool(self.completed[self._rows(number)].all())

    def write(self, number: int, block: dict[str, np.ndarray]) -> None:
        """Takes a lane; its flags are set once its outputs are on disk."""
        rows = self._rows(number)
        self.outputs[rows] = block["outputs"]
        self.outputs.flush()
        self.completed[rows] = True
        self.completed.flush()

    def read(self, number: int) -> dict[str, np.ndarray]:
        """A lane."""
        return {"outputs": np.array(self.outputs[self._rows(number)])}

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks [C, n] and outputs [C, ...] of the members that are completed."""
        rows = np.flatnonzero(self.completed)
        return self.masks[rows], self.outputs[rows]

    def _rows(self, number: int) -> slice:
        return slice(number * self._width, (number + 1) * self._width)


class Moments:
    """Sufficient statistics of a regression on the masks, without the members' outputs.

    Lanes are added in order, and the statistics are saved from time to time: after a kill the lanes
    since then are computed again, and the sums come out with the same bits.

    Attributes:
        path: the folder; it holds `moments.npz` and `settings.json`.
        statistics: of the lanes added so far, outputs flattened to [T]; None before the first.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        masks: np.ndarray,
        *,
        width: int,
        every: int = 50,
        record: dict[str, Any] | None = None,
    ):
        """Begins, or goes on with the statistics of the same run.

        Args:
            path: a new or empty folder, or one with the moments of the same run.
            masks: 0/1 [M, n].
            width: members per lane.
            every: lanes between savings; the last lane always saves.
            record: what else decides the outputs, JSON-like.

        Raises:
            ValueError: the folder holds another run, or something else.
            DamagedError: the file is damaged.
        """
        self._masks, self.path = subsets.check(masks), Path(path)
        self._width, self._every, self._lanes = width, every, 0
        self.statistics: Statistics | None = None
        with meshes.together():
            settings = _settings(self._masks, width, record)
            if _is_new(self.path, settings) and meshes.is_first():
                _write_settings(self.path, settings)
        self._store = BlockStore(self.path)
        if 0 in self._store:
            saved = self._store.read(0)
            self._lanes = int(saved.pop("lanes"))
            self.statistics = Statistics(int(saved.pop("count")), **saved)

    def check(self, masks: np.ndarray, width: int) -> None:
        """Raises a ValueError unless the statistics are of these masks and this width."""
        if width != self._width or not np.array_equal(masks, self._masks):
            raise ValueError(f"the store in {str(self.path)!r} is of other masks or another width")

    def __contains__(self, number: int) -> bool:
        return number < self._lanes

    def write(self, number: int, block: dict[str, np.ndarray]) -> None:
        """Adds the next lane."""
        if number != self._lanes:
            raise ValueError(f"lane is {number}, but the next one to add is {self._lanes}")
        at = number * self._width
        outputs = np.asarray(block["outputs"])
        outputs, masks = outputs.reshape(len(outputs), -1), self._masks[at : at + len(outputs)]
        if self.statistics is None:
            self.statistics = Statistics.of(masks, outputs)
        else:
            self.statistics.add(masks, outputs)
        self._lanes += 1
        is_last = at + self._width >= len(self._masks)
        if is_last or self._lanes % self._every == 0:
            fields = vars(self.statistics) | {"lanes": self._lanes}
            self._store.write(0, {name: np.asarray(value) for name, value in fields.items()})

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Moments keep no lanes."""
        raise NotImplementedError("moments keep no outputs of single members")


def _settings(masks: np.ndarray, width: int, record: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "members": len(masks),
        "masks_sha256": tree.digest(masks),
        "width": width,
        "record": record or {},
    }


def _is_new(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a store is to be made; raises if there is another one, or something else."""
    file = path / "settings.json"
    if not file.exists():
        foreign = {"outputs.npy", "completed.npy", "masks.npy"}  # of a kill while it was made
        if path.exists() and (
            not path.is_dir()
            or any(f.name not in foreign and not f.name.startswith(".") for f in path.iterdir())
        ):
            raise ValueError(f"{str(path)!r} is not empty and holds no store of members")
        if meshes.is_first():
            path.mkdir(parents=True, exist_ok=True)
        return True
    try:
        before = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise DamagedError(f"{file} is damaged ({error})") from error
    now = json.loads(json.dumps(settings))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"the store in {str(path)!r} is of another run: its {name} is "
                f"{before.get(name)!r}, but now it is {now.get(name)!r}"
            )
    return False


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    with replacing(path / "settings.json") as file:
        file.write((json.dumps(settings, indent=1) + "\n").encode())


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
