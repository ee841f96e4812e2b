"""Parts of a stack of layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.tree import Tree


def running(layers: Tree, n_layers: int, start_at: int, stop_at: int) -> Tree:
    """The layers that run, of a stack of all of them, or of those that run.

    Raises:
        ValueError: neither of them is what the stack holds.
    """
    found = jax.tree.leaves(layers)[0].shape[0]
    if found == n_layers:
        return jax.tree.map(lambda leaf: leaf[start_at:stop_at], layers)
    if found != stop_at - start_at:
        raise ValueError(
            f"params hold {found} layers; all {n_layers} are needed, or those from {start_at} to "
            f"{stop_at}"
        )
    return layers


def through(
    layer: Callable[[jax.Array, Any], tuple[jax.Array, Any]], x: jax.Array, stack: Any, unroll: int
) -> tuple[jax.Array, Any]:
    """`lax.scan` over a stack of layers; written out if all of them fit into one turn.

    `lax.scan` itself would make a call of every turn, which XLA inlines sooner in a program for
    several devices than in one for a single device, and then rounds differently.
    """
    n = jax.tree.leaves(stack)[0].shape[0]
    if unroll < n:
        return jax.lax.scan(layer, x, stack, unroll=unroll)
    found = []
    for i in range(n):
        x, own = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        found.append(own)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found) if found else None
