"""Files that appear whole or not at all, and the error for those that are damaged; without JAX."""

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np


class DamagedError(ValueError):
    """A file of results does not hold what was written; says which."""


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """`numpy.savez` for any names, atomic: the file appears whole or not at all."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def sync_folder(folder: str | os.PathLike) -> None:
    """Returns once the names of a folder's files are on disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """Opens a file to write that appears whole or not at all, and is on disk after the block.

    Raises:
        OSError: it cannot be written, as on a full disk; it is named, and nothing is left of it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # a failing write does not know it
        raise
    finally:
        temporary.unlink(missing_ok=True)
