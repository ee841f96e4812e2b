"""Where a step reads its data. A source is one of

- a pytree with `plan(key, steps: int32[K]) -> rows` (leading axis K, computed once per compiled
  block: shuffled index tables) and `gather(row, key) -> batch`; see `data.Batches`;
- a traced function `(key, step) -> batch`;
- for `loop.run` only, a host iterator of blocks: pytrees of arrays whose leading axis counts steps.
"""  # noqa: D205, D415

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Function:
    """A source made of a traced function `(key, step) -> batch`."""

    function: jax.tree_util.Partial

    def plan(self, key: Key, steps: jax.Array):
        return {"key": jnp.broadcast_to(key, steps.shape), "step": steps}

    def gather(self, row, key: Key):
        del key
        return self.function(row["key"], row["step"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
    """A source made of batches that are already there, leading axis steps."""

    rows: Any

    def plan(self, key: Key, steps: jax.Array):
        del key, steps
        return self.rows

    def gather(self, row, key: Key):
        del key
        return row


def as_source(data: Any) -> Any:
    """Data as something with `plan` and `gather`; raises if it is none of the kinds above."""
    if hasattr(data, "plan"):
        return data
    if not callable(data):
        raise ValueError(
            f"data is a {type(data).__name__}; it must have plan and gather, or be a function "
            "(key, step) -> batch, or (for run) an iterator of blocks"
        )
    partial = data if isinstance(data, jax.tree_util.Partial) else jax.tree_util.Partial(data)
    return _Function(partial)


def next_block(data: Any, block: int, taken: int, every: int) -> tuple[Any, int]:
    """The source of the next block and its number of steps; (None, 0) at an iterator's end."""
    if not hasattr(data, "__next__"):
        return as_source(data), block
    rows = next(data, None)
    if rows is None:
        return None, 0
    sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(rows)}
    if len(sizes) != 1:
        raise ValueError(
            f"data: the block after step {taken} has leading axes {sorted(sizes)}; "
            "all leaves of a block must have the same number of steps"
        )
    size = sizes.pop()
    if size % every:
        raise ValueError(
            f"data: the block after step {taken} has {size} steps, no multiple of every={every}"
        )
    return _Rows(jax.tree.map(jnp.asarray, rows)), size
