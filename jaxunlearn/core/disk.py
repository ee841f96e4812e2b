"""Files that appear whole or not at all, and the error for those that are damaged; without JAX."""

import contextlib
import errno
import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import readers

_DIGITS = 64  # of a checksum, SHA-256 in hex


class DamagedError(ValueError):
    """A file of results does not hold what was written; says which."""


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """`numpy.savez` for any names, atomic: the file appears whole or not at all.

    Its last bytes, a comment of the archive, are a checksum of all bytes before them.
    """
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
            archive.comment = bytes(_DIGITS)
        checksum = _checksum(file, file.seek(0, os.SEEK_END) - _DIGITS)
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(checksum)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `write_npz` wrote; also what an earlier version wrote, without a checksum.

    Raises:
        DamagedError: the file is damaged; it is named.
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            if _is_signed(file):
                size = file.seek(-_DIGITS, os.SEEK_END)
                if file.read() != _checksum(file, size):
                    raise ValueError("its contents have another hash")
            return readers.read_npz(Path(path))
        except Exception as error:  # a flipped bit can make the archive raise almost anything
            raise DamagedError(f"{path} is damaged ({error}); delete it and resume") from error


def _is_signed(file: Any) -> bool:
    """Whether anything follows the end of an archive's directory, which has 22 bytes."""
    file.seek(-22, os.SEEK_END)
    return file.read(4) != b"PK\5\6"


def _checksum(file: Any, size: int) -> bytes:
    """The checksum of a file's first bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def allocate(file: Any, size: int) -> None:
    """Takes the room of a file of so many bytes, zeros at its end, that is to be filled later.

    Without it a disk that is full by then would kill whoever writes through a memory map.

    Raises:
        OSError: the disk has not as much room.
    """
    file.flush()
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:
        missing = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # not on every (file) system
        if isinstance(error, OSError) and error.errno not in missing:
            raise
        left = size - file.seek(0, os.SEEK_END)
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))


def alone(path: Path) -> None:
    """Gives a file that is to be written in place a copy of its own if it has other names, too.

    What is written would be seen under all of its names (hard links), wherever they lie.
    """
    if path.stat().st_nlink > 1:
        with path.open("rb") as source, replacing(path) as copy:
            shutil.copyfileobj(source, copy)


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
        temporary.unlink(missing_ok=True)
        with temporary.open("x+b") as file:  # "x" follows no link
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
