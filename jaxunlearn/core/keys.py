"""Random keys by purpose: the same names give the same bits, wherever in a run they are asked."""

import zlib
from typing import TypeAlias

import jax

Key: TypeAlias = jax.Array  # a typed key, `jax.random.key`, shape []


def fold(key: Key, *parts: str | int | jax.Array) -> Key:
    """Derives a key from a purpose, e.g. `fold(key, "stage", "finetune", 0)`.

    Args:
        key: a typed key, shape [].
        *parts: strings (hashed by CRC-32, the same in every process) or integers, traced or not.

    Returns:
        A key, shape []. Different sequences of parts give independent keys.
    """
    for part in parts:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key
