"""Checkpoints: states through orbax, finished blocks of many models as plain files.

A write is atomic (temporary name, flush, rename): after a kill a checkpoint is there whole or not
at all. Every orbax import of the library is in this file.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxunlearn.core import mesh, records, tree
from jaxunlearn.core.disk import DamagedError, read_npz, write_npz
from jaxunlearn.core.tree import Tree

_DIGEST = "sha256"
_CHECKSUMS = "checksums.json"  # of all other files of a checkpoint


def save(path: str | os.PathLike, state: Tree) -> None:
    """Writes a pytree of arrays; an existing checkpoint is replaced once the new one is whole.

    Args:
        path: a folder, made if need be.
        state: any pytree of arrays, sharded or not; typed keys are not accepted (`key_data`).
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    new, old = (path.with_name(f".{path.name}.{age}") for age in ("new", "old"))
    ocp.save(str(new), _as_dict(state), overwrite=True)
    if mesh.is_first():
        records.write_signed(new / _CHECKSUMS, _checksums(new))
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def restore(path: str | os.PathLike, like: Tree) -> Tree:
    """Reads a checkpoint into the structure and onto the devices of `like`.

    Args:
        path: a folder that `save` wrote.
        like: a pytree of arrays or `ShapeDtypeStruct`s; their shardings say where leaves go, on
            whatever mesh, not necessarily the one they were saved from.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: names, shapes or dtypes differ from those saved; the first one is named.
        DamagedError: a file is not what was written; it is named. Checkpoints of earlier versions
            have no checksums: what shows there is only that they cannot be read at all.
    """
    path = Path(path).absolute()
    old = path.with_name(f".{path.name}.old")
    if not path.exists() and old.exists():  # killed between the two renames of `save`
        old.rename(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    _check_files(path)
    wanted = {name: _abstract(leaf) for name, leaf in _as_dict(like).items()}
    values = _read(path, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in wanted])


def _read(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    try:
        saved = dict(ocp.metadata(str(path)).metadata)
    except Exception as error:  # damage comes out as almost anything
        raise DamagedError(f"{path} is damaged ({error})") from error
    for name in sorted(set(wanted) ^ set(saved)):
        where = "in the checkpoint" if name in saved else "wanted"
        raise ValueError(f"checkpoint {path}: {name!r} is only {where}")
    for name, leaf in wanted.items():
        if tuple(saved[name].shape) != leaf.shape or saved[name].dtype != leaf.dtype:
            raise ValueError(
                f"checkpoint {path}: {name!r} is {saved[name].dtype}{list(saved[name].shape)}; "
                f"{leaf.dtype}{list(leaf.shape)} is wanted"
            )
    try:
        return ocp.load(str(path), wanted)
    except Exception as error:
        raise DamagedError(f"{path} is damaged ({error})") from error


def _checksums(folder: Path) -> dict[str, str]:
    """The checksum of every file of a checkpoint, by its name."""
    checksums = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / _CHECKSUMS:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            checksums[file.relative_to(folder).as_posix()] = digest
    return checksums


def _check_files(folder: Path) -> None:
    if not (folder / _CHECKSUMS).exists():  # of an earlier version
        return
    wanted, there = records.read_signed(folder / _CHECKSUMS), _checksums(folder)
    for name in sorted({**wanted, **there}):
        if name not in there:
            raise DamagedError(f"{folder} is damaged: {name} is not there")
        if wanted.get(name) != there[name]:
            raise DamagedError(f"{folder / name} is damaged (it has another hash)")


def _as_dict(state: Tree) -> dict[str, Any]:
    # Names with dots: a flat dict needs no knowledge of the state's classes when it is read back.
    named = tree.named(state)
    flat = {f"leaf/{name}".replace("/", "."): leaf for name, leaf in named.items()}
    if not flat:
        raise ValueError("checkpoint: the state has no arrays")
    if len(flat) < len(named):
        raise ValueError("checkpoint: two names differ only in '.' and '/'")
    return flat


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def store_shared(folder: str | os.PathLike, shared: Tree) -> str:
    """Stores a nested dict of arrays under its hash, unless it is there already.

    What all members of an ensemble or all stages of a run read (a base model, a teacher) is so kept
    once, however many of them refer to it.

    Returns:
        `tree.digest(shared)`, which `load_shared` takes.
    """
    digest = tree.digest(shared)
    file = Path(folder) / f"{digest}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_arrays(file, shared)
    return digest


def load_shared(folder: str | os.PathLike, digest: str) -> Tree:
    """Reads what `store_shared` stored, and checks that it hashes to its name.

    Raises:
        FileNotFoundError: there is nothing under this hash.
        DamagedError: the contents are not what was stored.
    """
    file = Path(folder) / f"{digest}.npz"
    shared = _read_arrays(file)
    if tree.digest(shared) != digest:
        raise DamagedError(f"{file} is damaged (its contents have another hash)")
    return shared


class BlockStore:
    """Numbered blocks of finished results in a folder: nested dicts of arrays, one file each."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def file(self, number: int) -> Path:
        """Where block `number` lies."""
        return self.path / f"{number:05d}.npz"

    def __contains__(self, number: int) -> bool:
        return self.file(number).exists()

    def write(self, number: int, block: Tree) -> None:
        """Writes a block and returns once it is on disk."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write_arrays(self.file(number), block)

    def read(self, number: int) -> Tree:
        """Reads a block.

        Raises:
            DamagedError: the file is damaged; it is named.
        """
        return _read_arrays(self.file(number))


def _write_arrays(path: Path, block: Tree) -> None:
    # NumPy's files know neither bfloat16 nor a hash: types stand in the names, bits in the arrays.
    leaves = {name: np.asarray(leaf) for name, leaf in tree.named(block).items()}
    entries = {_DIGEST: np.frombuffer(tree.digest(leaves).encode(), np.uint8)}
    for name, leaf in leaves.items():
        bits = leaf.view(f"u{leaf.itemsize}") if leaf.dtype.kind == "V" else leaf
        entries[f"{leaf.dtype.name}:{name}"] = bits
    write_npz(path, entries)


def _read_arrays(path: Path) -> Tree:
    entries = read_npz(path)
    try:
        digest = entries.pop(_DIGEST).tobytes().decode()
        leaves = {}
        for entry, array in entries.items():
            dtype, _, name = entry.partition(":")
            leaves[name] = array.view(jnp.dtype(dtype))
    except Exception as error:  # names and types may be anything
        raise DamagedError(f"{path} is damaged ({error!r}); delete it and resume") from error
    if tree.digest(leaves) != digest:
        raise DamagedError(f"{path} is damaged (its contents have another hash)")
    return tree.nested(leaves)
