"""Functions of many rows, computed a chunk at a time to bound the memory.

All chunks have one shape, so that one program serves them: the last row fills the last chunk up,
and what it gives there is dropped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def mapped(function: Callable[[Any], Any], rows: Any, most: int) -> Any:
    """`function` of N rows inside a compiled program, at most `most` of them at a time.

    Args:
        function: traced, from a pytree of arrays with a leading axis to another one.
        rows: leading axis N.
        most: rows computed together; fewer where that makes the chunks equal.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if n <= most:
        return function(rows)
    n_chunks = -(-n // most)
    size = -(-n // n_chunks)  # chunks of equal size: as few rows as can be are computed twice
    index = jnp.minimum(jnp.arange(n_chunks * size), n - 1).reshape(n_chunks, size)
    parts = jax.lax.map(
        lambda some: function(jax.tree.map(lambda leaf: jnp.asarray(leaf)[some], rows)), index
    )
    return jax.tree.map(lambda x: x.reshape(n_chunks * size, *x.shape[2:])[:n], parts)


def blocks(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """For calls from the host: the `size` rows of each chunk of n, and how many of them count."""
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1), min(size, n - start)
