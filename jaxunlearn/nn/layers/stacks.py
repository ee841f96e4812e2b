"""Stacks of equal blocks: parameters [n, ...], run under one `lax.scan`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree


class Stack(NamedTuple):
    """A stack of equal blocks; a program compiles as fast for 80 of them as for 2.

    Attributes:
        block: one block without statistics, `block.apply(params, {}, x, *shared)` gives x; or
            (x, out), where each block has an input after the shared ones (see `run`).
        n: number of blocks.
    """

    block: Model
    n: int

    def init(self, key: Key) -> Tree:
        """Parameters of all blocks, [n, ...]."""
        return jax.vmap(lambda key: self.block.init(key)[0])(jax.random.split(key, self.n))

    def run(
        self,
        params: Tree,
        x: jax.Array,
        *shared: Any,
        start: int = 0,
        stop: int | None = None,
        unroll: int = 1,
        remat: bool = False,
        per_block: Any = None,
    ) -> tuple[jax.Array, Any]:
        """The blocks from `start` up to `stop` (by default all), one after the other.

        Args:
            params: parameters of all blocks, or of those that run.
            x: input of the first block that runs.
            *shared: what every block takes beside it.
            start: number of blocks that are skipped.
            stop: number of the block before which it ends.
            unroll: blocks per turn of the loop; more are faster on a CPU and slower to compile.
            remat: whether the backward pass recomputes what is inside a block, not keeping it.
            per_block: inputs of each block, such as caches: a tree with an axis as `params`.

        Returns:
            The last block's output, and what the blocks gave beside it, stacked, or None.

        Raises:
            ValueError: bounds outside of the stack, or parameters or inputs for a number of blocks
                that is neither that of all nor that of those that run.
        """
        start, stop = span(self.n, start, stop)

        def turn(x: jax.Array, of_block: tuple[Tree, Any]) -> tuple[jax.Array, Any]:
            weights, inputs = of_block
            if inputs is None:
                return self.block.apply(weights, {}, x, *shared)[0], None
            return self.block.apply(weights, {}, x, *shared, inputs)[0]

        blocks = tuple(
            None if part is None else _running(name, part, self.n, start, stop)
            for name, part in (("params", params), ("per_block", per_block))
        )
        return _through(jax.checkpoint(turn) if remat else turn, x, blocks, unroll)


def span(
    n: int, start: int | None, stop: int | None, names: tuple[str, str] = ("start", "stop")
) -> tuple[int, int]:
    """The bounds of the blocks that run, of n.

    Raises:
        ValueError: there are no such blocks; the message has the `names`.
    """
    first, last = start or 0, n if stop is None else stop
    if not 0 <= first <= last <= n:
        a, b = names
        raise ValueError(f"{a} is {start} and {b} {stop}; 0 <= {a} <= {b} <= {n} is needed")
    return first, last


def _running(name: str, blocks: Tree, n: int, start: int, stop: int) -> Tree:
    """The blocks that run, of all of them, or of those that run."""
    n_held = jax.tree.leaves(blocks)[0].shape[0]
    if n_held == n:
        return jax.tree.map(lambda leaf: leaf[start:stop], blocks)
    if n_held != stop - start:
        raise ValueError(
            f"{name} hold {n_held} layers; all {n} are needed, or those from {start} to {stop}"
        )
    return blocks


def _through(
    turn: Callable[[jax.Array, Any], tuple[jax.Array, Any]], x: jax.Array, blocks: Any, unroll: int
) -> tuple[jax.Array, Any]:
    """`lax.scan` over the blocks; written out if all of them fit into one turn.

    `lax.scan` itself would make a call of every turn, which XLA inlines sooner in a program for
    several devices than in one for a single device, and then rounds differently.
    """
    n = jax.tree.leaves(blocks)[0].shape[0]
    if unroll < n or n == 0:
        return jax.lax.scan(turn, x, blocks, unroll=unroll)
    outs = []
    for i in range(n):
        x, out = turn(x, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
