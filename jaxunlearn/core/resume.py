"""How far a run is, on disk: what stages, members and pretraining go on from after a kill."""

import json
import os
import shutil
import time
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import configuration
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.readers import parse_json, reading
from jaxunlearn.core.tree import Tree


class ResumePoint:
    """A folder with one file that holds the progress of a run; it is there whole or not at all."""

    def __init__(self, folder: str | os.PathLike, origin: Any = None, *, seconds: float = 0):
        """Looks at nothing yet.

        Args:
            folder: made when there is something to keep.
            origin: JSON-like record of what decides the run; another run's progress is refused.
            seconds: time between two writings; progress that comes earlier is not kept.
        """
        self._store = BlockStore(folder)
        self._origin = json.dumps(origin)
        self._seconds, self._last = seconds, time.monotonic()

    def read(self, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The progress that was written last and what was written beside it, if there is one.

        Args:
            like: a progress of the same structure and shapes; its arrays that lie over a mesh say
                where those of the same place go, the others stay on the host.

        Raises:
            ValueError: it is the progress of another run or under another configuration (see
                `configuration`), or one that cannot be read any more.
            DamagedError: the file is damaged.
        """
        path = self._store.path
        if 0 not in self._store:
            # A hidden file is one of ours that a kill left behind before it was whole.
            if path.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
                raise ValueError(
                    f"{path} holds a progress that an earlier version of this library wrote; go on "
                    "with that version, or delete the folder to begin this part of the run anew"
                )
            return None
        content = self._store.read(0)
        origin = content.pop("origin", None)  # an earlier version did not write it
        if origin is not None and origin.tobytes().decode() != self._origin:
            raise ValueError(
                f"{path} comes from another start, key or other stages; choose another folder"
            )
        with reading(file := self._store.file(0), DamagedError):
            text = content.pop("configuration", None)
            before = None if text is None else parse_json(text.tobytes(), file)
            saved = [leaf for _, leaf in sorted(content.pop("progress").items())]
        configuration.check(before, str(path))
        leaves, structure = jax.tree.flatten(like)
        shapes = [[np.shape(leaf) for leaf in some] for some in (leaves, saved)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{file} holds the progress of another stage or model")
        placed = [_placed(leaf, like) for leaf, like in zip(saved, leaves, strict=True)]
        return jax.tree.unflatten(structure, placed), content

    def write(self, progress: Tree, **beside: dict[str, Any]) -> None:
        """Keeps a progress in place of the one before, and dicts of arrays beside it."""
        if time.monotonic() < self._last + self._seconds:
            return
        # Leaves by number: names would not survive in all their kinds (tuples, NamedTuples).
        leaves = {f"{i:04d}": _on_host(leaf) for i, leaf in enumerate(jax.tree.leaves(progress))}
        texts = {"origin": self._origin, "configuration": json.dumps(configuration.current())}
        known = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
        if meshes.is_first():
            self._store.write(0, {"progress": leaves, **known, **beside})
        self._last = time.monotonic()

    def drop(self) -> None:
        """Forgets the progress, of a run that is finished."""
        if meshes.is_first():
            shutil.rmtree(self._store.path, ignore_errors=True)


def _on_host(leaf: Any) -> np.ndarray:
    """Also of an array of which other processes hold parts."""
    is_here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return np.asarray(leaf if is_here else meshes.gather(leaf))


def _placed(leaf: np.ndarray, like: Any) -> Any:
    sharding = getattr(like, "sharding", None)
    return meshes.place(leaf, sharding) if isinstance(sharding, jax.NamedSharding) else leaf
