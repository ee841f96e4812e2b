"""Decoded images on disk, so that a set is decoded once.

There is one folder per source, `<cache>/<name>-<hash of its path>/`, and one per size that its
images were scaled to, `<...>-<size>/`, with an `.npy` file for each array and an `entry.json` that
holds the fingerprint of the source's files and the shape, size and SHA-256 of each array. It is
made under another name and renamed when it is whole and on disk, while a lock is held that dies
with its process: so a kill leaves a whole entry or none, what it leaves behind is removed by the
next writer, and a changed source replaces its entry.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jaxunlearn.core.disk import sync_folder
from jaxunlearn.data._decode import Arrays, Encoded, decode
from jaxunlearn.data._notices import notice

_FORMAT = 2  # raised when decoding changes, so that old entries are made anew


def load(encoded: Encoded, cache_dir: str | os.PathLike | Literal[False] | None) -> Arrays:
    """The decoded arrays of a set, from the cache if they are there.

    A cache that cannot be written costs a notice on stderr and no data. Without `cache_dir` it is
    `$JAXUNLEARN_CACHE`, else `jaxunlearn` in `$XDG_CACHE_HOME`, else in `~/.cache`; with False, or
    where nobody is at home, it is nowhere. The arrays are those of `decode`, read-only.

    Raises:
        ValueError: the source is damaged.
    """
    cache = _default_dir() if cache_dir is None else cache_dir
    arrays = _kept(encoded, Path(cache)) if cache else decode(encoded)
    for array in arrays.values():
        array.flags.writeable = False  # as those mapped from the cache
    return arrays


def _kept(encoded: Encoded, cache: Path) -> Arrays:
    """From the cache, where they are put if they are not there."""
    entry, fingerprint = _entry(encoded, cache), _fingerprint(encoded)
    arrays, _ = _read(entry, fingerprint)
    if arrays is None:
        with _locked(entry):
            arrays, damage = _read(entry, fingerprint)  # another process may have made it
            if damage:
                notice(f"{entry} is damaged ({damage}); it is made anew")
            if arrays is None:
                arrays = _make(encoded, entry, fingerprint)
    return arrays


def _default_dir() -> Path | None:
    if chosen := os.environ.get("JAXUNLEARN_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if base.startswith("~") else Path(base) / "jaxunlearn"


def _entry(encoded: Encoded, cache: Path) -> Path:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", encoded.name).strip("-.")[-60:]
    place = hashlib.sha256(os.fsencode(encoded.root.resolve())).hexdigest()
    size = "" if encoded.size is None else f"-{encoded.size}"
    return cache.absolute() / f"{name}-{place[:16]}{size}"


def _fingerprint(encoded: Encoded) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for file in sorted(encoded.files):
        stat = file.stat()
        line = f"{file.relative_to(encoded.root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _make(encoded: Encoded, entry: Path, fingerprint: str) -> Arrays:
    size = f"{encoded.n_images:,} images, {encoded.n_bytes / 1e6:.3g} MB"
    notice(f"decoding {encoded.name}: {size} into {entry}")
    arrays = decode(encoded)
    try:
        _write(entry, arrays, fingerprint)
    except OSError as error:
        notice(f"the cache {entry} could not be written ({error}); decoding again next time")
    return arrays


def _read(entry: Path, fingerprint: str) -> tuple[Arrays | None, str]:
    # The arrays, or None and what is wrong; nothing is wrong with an entry that is absent or stale.
    try:
        record = json.loads((entry / "entry.json").read_text())
        if record["fingerprint"] != fingerprint:
            return None, ""
        return {name: _read_array(entry, name, told) for name, told in record["arrays"].items()}, ""
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing" if entry.exists() else ""
    except Exception as error:  # a flipped bit can make any line above raise
        return None, str(error)


def _read_array(entry: Path, name: str, told: dict) -> np.ndarray:
    # Mapped, not read: it costs no memory of its own, and no file of an entry is ever changed.
    array = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
    if told != _described(array):
        raise ValueError(f"{name}.npy does not hold what was written")
    return array


def _described(array: np.ndarray) -> dict:
    digest = hashlib.sha256(array.data.cast("B")).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes,
            "sha256": digest}  # fmt: skip


def _write(entry: Path, arrays: Arrays, fingerprint: str) -> None:
    partial, old = (entry.with_name(f".{entry.name}.{kind}") for kind in ("partial", "old"))
    try:
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            with _synced(partial / f"{name}.npy") as file:
                header = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(file, header)
                file.write(array.data.cast("B"))  # unlike tofile, says why it fails
        described = {name: _described(array) for name, array in arrays.items()}
        record = {"fingerprint": fingerprint, "arrays": described}
        with _synced(partial / "entry.json") as file:
            file.write(json.dumps(record, indent=1).encode())
        sync_folder(partial)
        if entry.exists():
            entry.rename(old)
        partial.rename(entry)
        sync_folder(entry.parent)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(entry: Path) -> Iterator[None]:
    # One writer an entry; the kernel frees the lock of a killed process.
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            entry.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(entry.with_name(f".{entry.name}.lock").open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass  # no locks on this system, or no writing either: the write says so
        yield
