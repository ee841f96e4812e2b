"""The GGUF format of llama.cpp: a header with metadata, then tensors, quantised or not.

The header is read here, since the package's reader makes several objects per token of the
vocabulary; the package `gguf` dequantises.
"""

import dataclasses
import functools
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.extras import MissingPackageError
from jaxunlearn.core.readers import reading
from jaxunlearn.nn.files.spans import check_apart

# Format characters of `struct` for the types of metadata; 8 is a string, 9 an array.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4  # of a tensor, as in llama.cpp
_AT_ONCE = 2**18  # numbers that are dequantised together: what a cache holds


@dataclasses.dataclass(frozen=True)
class QuantisedTensor:
    """A tensor in a file. Indexing reads and dequantises the rows that are asked for, to float32.

    Attributes:
        file: the file that holds it.
        shape: shape in the file, [out, in] for a matrix.
        kind: number of its type.
        offset: position of its first byte.
        pairs: (heads, h) if the rows of each head lie as interleaved rotary pairs, which indexing
            puts back into halves.
    """

    file: Path
    shape: tuple[int, ...]
    kind: int
    offset: int
    pairs: tuple[int, int] | None = None
    dtype = np.dtype(np.float32)  # of what indexing gives

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *columns = index if isinstance(index, tuple) else (index,)
        *outer, width = self.shape
        block, size = _block(self.kind)
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (*outer, width // block * size))
        chosen = (
            np.arange(self.shape[0])[rows] if self.pairs is None else _halves(*self.pairs)[rows]
        )
        if not outer:
            return _dequantised(np.array(raw), self.kind)[chosen]
        return _dequantised(raw[chosen], self.kind)[:, *columns]


def _halves(n_heads: int, head_dim: int) -> np.ndarray:
    """Which row of llama.cpp's layout each row of Hugging Face's is."""
    rows = np.arange(n_heads * head_dim).reshape(n_heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def read(file: Path) -> tuple[dict[str, QuantisedTensor], dict[str, Any]]:
    """Tensors by their names in the file, and metadata; the weights are not read yet.

    Raises:
        ValueError: no GGUF file, one that is cut off or one of several parts, a tensor type that is
            not known, or tensors that are not apart in the file.
    """
    if not file.stat().st_size:
        raise ValueError(f"{file}: the file is empty")
    with (
        reading(file),
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if data[:4] != b"GGUF":
            raise ValueError("no GGUF file")
        try:
            tensors, metadata = _header(file, _Cursor(data))
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"cut off or broken in its header ({error})") from error
        n_parts = checks.whole("split.count", metadata.get("split.count", 1), 0)
        if n_parts > 1:
            raise ValueError(f"one of {n_parts} parts; merge them first")
        return tensors, metadata


class _Cursor:
    """Reads values from a header, one after another."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self.at += length
        if self.at > len(self.data):
            raise struct.error("a string ends after the file")
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, length = self.numbers("IQ")
            if inner == _ARRAY:
                raise struct.error("an array of arrays, which no metadata has")
            if inner in _SCALARS:
                return list(self.numbers(f"{length}{_SCALARS[inner]}"))
            return [self.value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise struct.error(f"{kind} is no type of metadata")
        return self.numbers(_SCALARS[kind])[0]


def _header(file: Path, cursor: _Cursor) -> tuple[dict[str, QuantisedTensor], dict[str, Any]]:
    version, n_tensors, n_values = cursor.numbers("IQQ")
    if version not in (2, 3):
        raise ValueError(f"{file}: GGUF version {version}; 2 and 3 are read")
    metadata = {}
    for _ in range(n_values):
        name = cursor.string()
        metadata[name] = cursor.value(*cursor.numbers("I"))
    entries = {}
    for _ in range(n_tensors):
        name, (n_axes,) = cursor.string(), cursor.numbers("I")
        if not 1 <= n_axes <= _MOST_AXES or name in entries:
            raise ValueError(f"tensor {name!r} has {n_axes} axes, or is there twice")
        shape = cursor.numbers(f"{n_axes}Q")[::-1]
        entries[name] = (shape, *cursor.numbers("IQ"))
    alignment = checks.whole("general.alignment", metadata.get("general.alignment", 32))
    start = -(-cursor.at // alignment) * alignment
    size = len(cursor.data)
    tensors, spans = {}, {}
    for name, (shape, kind, offset) in entries.items():
        try:
            block, n_bytes = _block(kind)
        except ValueError as error:
            raise ValueError(f"{file}: tensor {name!r} {error}") from error
        if 0 in shape or shape[-1] % block:
            raise ValueError(f"{file}: tensor {name!r} of shape {list(shape)} has broken blocks")
        end = start + offset + math.prod(shape) // block * n_bytes
        if end > size:
            raise ValueError(
                f"{file}: cut off; tensor {name!r} ends at byte {end}, the file has {size}"
            )
        tensors[name] = QuantisedTensor(file, shape, kind, start + offset)
        spans[name] = (start + offset, end)
    check_apart(file, spans)
    return tensors, metadata


@functools.cache
def _block(kind: int) -> tuple[int, int]:
    """How many numbers a block of this type holds, and in how many bytes."""
    gguf = _package()
    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise ValueError(f"has type {kind}, which the package gguf does not know") from error
    block, size = gguf.GGML_QUANT_SIZES[known]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), known)
    except NotImplementedError as error:
        raise ValueError(f"is {known.name}, which the package gguf does not dequantise") from error
    return block, size


def _dequantised(packed: np.ndarray, kind: int) -> np.ndarray:
    gguf, (block, size) = _package(), _block(kind)
    kind = gguf.GGMLQuantizationType(kind)
    # The package takes 16 rows at a time; longer ones are faster.
    flat = np.ascontiguousarray(packed).reshape(-1)
    out = np.empty(flat.size // size * block, np.float32)
    step = _AT_ONCE // block
    for at in range(0, flat.size // size, step):
        some = flat[None, at * size : (at + step) * size]
        out[at * block : (at + step) * block] = gguf.quants.dequantize(some, kind)[0]
    return out.reshape(*packed.shape[:-1], -1)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError("a .gguf file", "gguf") from error
    return gguf
