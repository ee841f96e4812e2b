"""Files that may hold anything: what goes wrong in reading one is an error that names it; no JAX.

Sizes that a file declares are compared with its own before anything is made of them: no small file
takes gigabytes.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxunlearn.core.extras import MissingPackageError

_HEADERS = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy writes
_SMALL, _MOST_RATIO = 64 * 2**20, 100  # bytes that any member may unpack to, and its ratio above


class reading:  # as the context managers of `contextlib` are written
    """Turns whatever a reader raises within the block into an error that says of what.

    Nothing else passes but the system's own errors, which name their file, the lack of an extra's
    package, and an interruption. The error begins with `what`, unless it does so already; a path
    is not put before words that have it anywhere.

    >>> with reading("mine.json: its width"):
    ...     len(3)
    Traceback (most recent call last):
    ValueError: mine.json: its width: it is not of the form that is needed (TypeError: object of \
type 'int' has no len())
    """

    def __init__(self, what: str | os.PathLike, kind: type[ValueError] = ValueError):
        """Takes what is being read, a file or an entry of it, and the class of the errors."""
        self.what, self.kind = what, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, trace: Any) -> None:
        # Packages written in Rust panic by an exception that is no `Exception`.
        is_panic = type(error).__name__ == "PanicException"
        if error is None or not (isinstance(error, Exception) or is_panic):
            return
        is_system = isinstance(error, OSError) and error.filename is not None
        if isinstance(error, MissingPackageError) or is_system:
            return
        words, what = _words(error), str(self.what)
        is_named = words.startswith(what) if isinstance(self.what, str) else what in words
        if not (isinstance(error, self.kind) and is_named):
            raise self.kind(words if is_named else f"{what}: {words}") from error


def _words(error: BaseException) -> str:
    """What is wrong, for whoever has the file and not the reader."""
    match error:
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it asks for more memory than there is"
        case KeyError():
            return f"{error} is missing in it"
        case UnicodeError():
            return f"it is no text in UTF-8 ({error})"
        case ValueError() | OSError() | zipfile.BadZipFile():
            return str(error) or type(error).__name__
        case _:
            return f"it is not of the form that is needed ({type(error).__name__}: {error})"


def parse_json(
    content: bytes | str, what: str | os.PathLike, kind: type[ValueError] = ValueError
) -> Any:
    r"""What a text of JSON in UTF-8 says.

    Args:
        content: the text.
        what: file, and perhaps the entry of it, for errors.
        kind: class of the errors.

    Raises:
        ValueError: no JSON, or one with half of a character ("\ud83d"), which no text can hold.
    """
    with reading(what, kind):
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text)
        if "\\ud" in text.lower():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(error.object[error.start]):04x}"
                raise ValueError(f"it holds {half}, half of a character") from None
        return value


def read_object(
    path: Path, kind: type[ValueError] = ValueError, most: int | None = None
) -> dict[str, Any]:
    """An object of JSON from a file.

    Raises:
        ValueError: something else, see `parse_json`, or more than `most` bytes.
    """
    size, what = path.stat().st_size, f"{path}: it is not a JSON object"
    if most is not None and size > most:
        raise kind(f"{path}: it has {size:,} bytes; at most {most:,} are read")
    value = parse_json(path.read_bytes(), what, kind)
    if not isinstance(value, dict):
        raise kind(f"{what}, but a {type(value).__name__}")
    return value


def read_npy(path: Path) -> np.ndarray:
    """An array from an `.npy` file; for use under `reading`.

    Raises:
        ValueError: one of objects, or one whose header does not fit its size.
    """
    with path.open("rb") as file:
        return _array(file, path.stat().st_size)


def read_npz(
    path: Path, wanted: Callable[[list[str]], Iterable[str]] = list
) -> dict[str, np.ndarray]:
    """Arrays from an `.npz` file by name; its other members are not unpacked. Under `reading`.

    Args:
        path: the file.
        wanted: function of the names of all members that says which to read; all by default.

    Raises:
        ValueError: a member of objects, one whose header does not fit its size, or one that unpacks
            to more than 100 times its size and more than 64 MB; it is named.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        packed = sum(info.compress_size for info in members.values())
        if len(members) < len(archive.infolist()) or packed > path.stat().st_size:
            raise ValueError("its members lie over each other, or two have one name")
        for name in wanted(list(members)):
            info = members[name]
            with reading(name):
                _check_member(info)
                with archive.open(info) as file:
                    arrays[name] = _array(file, info.file_size)
    return arrays


def _check_member(info: zipfile.ZipInfo) -> None:
    if info.compress_type not in _PLAIN:
        raise ValueError("it is packed in a way that NumPy does not write")
    if info.file_size > max(_SMALL, _MOST_RATIO * info.compress_size):
        raise ValueError(
            f"it unpacks to {info.file_size:,} bytes from {info.compress_size:,}; at most "
            f"{_MOST_RATIO} times as many are read"
        )


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """An array from an opened file, or member, of so many bytes."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version}; 1.0 and 2.0 are read")
    shape, _, dtype = _HEADERS[version[0] - 1](file)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read: they could run any code")
    n_bytes, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if n_bytes != left or min(shape, default=0) < 0:
        raise ValueError(
            f"its header tells of {dtype}{list(shape)}, {n_bytes:,} bytes, but {left:,} follow"
        )
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
