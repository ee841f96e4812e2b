"""Means and extremes over the examples that are kept, with static shapes.

A batch is a dict with `x`, images [B, H, W, C], and, where not all of them count (the last batch of
a domain, a window that is not full), `valid`, bool [B].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.tree import Tree


def both(first: jax.Array | None, second: jax.Array | None) -> jax.Array | None:
    """Masks joined by and; None keeps everything."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def everywhere(kept: jax.Array | None, n: int) -> jax.Array:
    """The mask as an array, bool [n]."""
    return jnp.ones(n, bool) if kept is None else kept


def mean(values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """The mean over the first axis of what is kept: [B, ...] -> [...]; 0 where nothing is."""
    if kept is None:
        return jnp.mean(values, axis=0)
    kept = kept.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(kept, values, 0), axis=0) / jnp.maximum(jnp.sum(kept), 1)


def minimum(values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """The least of what is kept, [B] -> []; inf where nothing is."""
    return jnp.min(values if kept is None else jnp.where(kept, values, jnp.inf))


def maximum(values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """The largest of what is kept, [B] -> []; -inf where nothing is."""
    return jnp.max(values if kept is None else jnp.where(kept, values, -jnp.inf))


def where(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    """One of two states, by a bool []."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def valid(batch: dict[str, Any]) -> jax.Array | None:
    """The mask of a batch, None where all of it counts."""
    return batch.get("valid")
