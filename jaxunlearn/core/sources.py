"""Where a step reads its data. A source is one of

- a pytree with `plan(key, steps: int32[K]) -> rows` (leading axis K, computed once per compiled
  block: shuffled index tables) and `gather(row, key) -> batch`; see `data.Batches`;
- a traced function `(key, step) -> batch`;
- for `loop.run` only, `HostBlocks`: blocks of batches read on the host.
"""  # noqa: D205, D415

import dataclasses
import itertools
from collections.abc import Callable, Iterator
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
            "(key, step) -> batch, or (for run) HostBlocks"
        )
    partial = data if isinstance(data, jax.tree_util.Partial) else jax.tree_util.Partial(data)
    return _Function(partial)


@dataclasses.dataclass(frozen=True)
class HostBlocks:
    """A source on the host, for what is too large for the device; for `loop.run` only.

    Attributes:
        open: `open(first_step) -> iterator` of blocks, pytrees of arrays whose leading axis counts
            steps; it begins with the batch of that step, so that a resumed run, and every run of a
            stage, reads the same batches.
    """

    open: Callable[[int], Iterator[Any]]


def blocks_of(
    data: Any, block: int, first: int, every: int, n_steps: int
) -> Iterator[tuple[Any, int]]:
    """The sources of a run's blocks and their numbers of steps; raises where they end too early.

    Args:
        data: a source.
        block: steps of a block, for a source on the device.
        first: the first step.
        every: divisor of the number of steps of every block.
        n_steps: steps of the whole run.
    """
    if not isinstance(data, HostBlocks):
        yield from itertools.repeat((as_source(data), block))
    for rows in data.open(first):
        sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(rows)}
        if len(sizes) != 1:
            raise ValueError(
                f"data: a block has leading axes {sorted(sizes)}; all leaves of a block must have "
                "the same number of steps"
            )
        size = sizes.pop()
        if size % every:
            raise ValueError(f"data: a block has {size} steps, no multiple of every={every}")
        yield _Rows(jax.tree.map(jnp.asarray, rows)), size
        first += size
    raise ValueError(f"data: the blocks ended after step {first} of {n_steps}")
