"""The safetensors format: a header of JSON, then raw tensors, read through memory maps.

The package of that name gives NumPy no bfloat16 on every version, and no slices of it.
"""

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxunlearn.core.readers import parse_json, reading
from jaxunlearn.nn.files.spans import check_apart

_DTYPES = {f"F{8 * size}": np.dtype(f"<f{size}") for size in (8, 4, 2)}
_DTYPES["BF16"] = np.dtype(ml_dtypes.bfloat16)
_INT8 = {"I8": np.dtype("i1")}  # of quantised kernels, which mean nothing without their scales
_CODES = {dtype: code for code, dtype in (_DTYPES | _INT8).items()}
_MOST_HEADER = 32 * 2**20  # 280,000 tensors; what JSON becomes in memory is 20 times as large
_MOST_AXES = 8
_SAYS = "__metadata__"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file. Indexing reads what is asked for; nothing else stays in memory.

    Attributes:
        file: the file that holds it.
        shape: shape in the file, [out, in] for a matrix.
        dtype: type in the file.
        offset: position of its first byte.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def end(self) -> int:
        """Position after its last byte."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.end == self.offset:  # nothing to map
            return np.empty(self.shape, self.dtype)[index]
        # A map of its own, so that the pages that were read are given back.
        return np.array(np.memmap(self.file, self.dtype, "r", self.offset, self.shape)[index])


def tensors(file: Path, *, quantised: bool = False, ignore: str = "") -> dict[str, Stored]:
    """The tensors of a file by name; only its header is read.

    Where `quantised` is true, tensors may be int8 too; those whose whole names match the regular
    expression `ignore` are left out, whatever their type.

    Raises:
        ValueError: no safetensors file, one that is cut off or whose header is larger than 32 MiB,
            a tensor that is not of floats, or tensors that share bytes.
    """
    dtypes = _DTYPES | _INT8 if quantised else _DTYPES
    with reading(file):
        header, start = _header(file)
        size = file.stat().st_size
        stored = {
            name: _stored(file, name, entry, start, size, dtypes)
            for name, entry in header.items()
            if name != _SAYS and not re.fullmatch(ignore, name)
        }
        check_apart(file, {name: (it.offset, it.end) for name, it in stored.items()})
        return stored


def metadata(file: Path) -> dict[str, str]:
    """What a file says of itself; raises as `tensors` does."""
    stated = _header(file)[0].get(_SAYS) or {}
    if not isinstance(stated, dict) or not all(isinstance(it, str) for it in stated.values()):
        raise ValueError(f"{file}: its metadata is no object of JSON with texts only")
    return stated


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER):
            raise ValueError(f"{file}: cut off in its header, or no safetensors file")
        what = f"{file}: no safetensors file; its header is not JSON"
        header = parse_json(opened.read(length), what)
        if not isinstance(header, dict):
            raise ValueError(f"{what} of an object")
        return header, 8 + length


def _stored(
    file: Path, name: str, entry: Any, start: int, size: int, dtypes: dict[str, np.dtype]
) -> Stored:
    broken = f"{file}: the header's entry of {name!r} is broken: {reprlib.repr(entry)}"
    match entry:
        case {"dtype": str(code), "shape": [*sides], "data_offsets": [int(begin), int(end)]}:
            shape = tuple(sides)
        case _:
            raise ValueError(broken)
    if len(shape) > _MOST_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(broken)
    if code not in dtypes:
        raise ValueError(f"{file}: tensor {name!r} is {code}; read are {', '.join(dtypes)}")
    if begin < 0 or end - begin != math.prod(shape) * dtypes[code].itemsize:
        raise ValueError(
            f"{file}: tensor {name!r} of {code}{list(shape)} has {end - begin} bytes, which does "
            "not fit"
        )
    if start + end > size:
        raise ValueError(
            f"{file}: cut off; tensor {name!r} ends at byte {start + end}, the file has {size}"
        )
    return Stored(file, shape, dtypes[code], start + begin)


def writable(dtype: Any, name: str) -> np.dtype:
    """The type as the format has it.

    Raises:
        ValueError: not one of the float types.
    """
    if np.dtype(dtype) not in _DTYPES.values():
        raise ValueError(f"{name!r} is {np.dtype(dtype)}; a file holds {', '.join(_DTYPES)}")
    return np.dtype(dtype)


def write(
    file: IO[bytes],
    layout: dict[str, tuple[tuple[int, ...], Any]],
    arrays: Iterable[np.ndarray],
    says: dict[str, str] | None = None,
) -> None:
    """Writes a file, one tensor after another.

    The layout has shape and dtype of each tensor by name; the arrays, in the same order, are taken
    one by one. What the file `says` of itself is its `metadata`.
    """
    header: dict[str, Any] = {_SAYS: {"format": "pt"} | (says or {})}  # for transformers
    end = 0
    for name, (shape, dtype) in layout.items():
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        code = _CODES[np.dtype(dtype)]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
