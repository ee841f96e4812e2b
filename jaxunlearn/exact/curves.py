"""How good an ensemble is in the course of deletions, without running a network again.

All that deletions can leave was computed once (`serving.all_outputs`), so that a request only
changes which of these outputs are averaged: whole studies of request streams are one program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.exact import simulation

Score = Callable[[jax.Array, Any], jax.Array]  # (mean outputs [n, ...], targets) -> []


class Curve(NamedTuple):
    """Along streams of requests, before the first one and after each.

    Attributes:
        score: float32 [S, R + 1], NaN once all shards are dead.
        living: int32 [S, R + 1], shards that answer.
        depth: int32 [S, R + 1, m], stages that each shard answers with.
    """

    score: np.ndarray
    living: np.ndarray
    depth: np.ndarray


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of rows whose largest logit is the label's: [n, C], [n] -> []."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def follow(score: Score, outputs: np.ndarray, targets: Any, orders: np.ndarray, hits: Any) -> Curve:
    """Scores an ensemble before the first request of every stream and after each.

    Args:
        score: a pure function of the mean outputs of the living shards, such as `accuracy`.
        outputs: [m, B, L, n, ...], see `serving.all_outputs`.
        targets: what the score compares with.
        orders: [m, B, L]; of more orders in `outputs` than here the first ones are meant:
            cyclic orders of one budget begin with those of all smaller ones.
        hits: int [S, R], slices that requests hit, see `simulation.requests`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    m, budget, n_slices = orders.shape
    if outputs.shape[0] != m or outputs.shape[1] < budget or outputs.shape[2] != n_slices:
        raise ValueError(
            f"outputs have shape {list(outputs.shape)}; orders {list(orders.shape)} need "
            f"[{m}, at least {budget}, {n_slices}, n, ...]"
        )
    hits = np.asarray(hits)
    if hits.ndim != 2:
        raise ValueError(f"hits have shape {list(hits.shape)}; [streams, requests] is needed")
    if hits.size and not 0 <= hits.min() <= hits.max() < m * n_slices:
        raise ValueError(f"hits are {hits.min()} to {hits.max()}; 0 to {m * n_slices - 1} only")
    left = simulation.depths(orders, jnp.asarray(hits))
    whole = jnp.full((left.shape[0], 1, m, budget), n_slices, left.dtype)
    curve = _follow(score, jnp.asarray(outputs), targets, jnp.concatenate([whole, left], axis=1))
    return Curve(*jax.device_get(curve))


@functools.partial(jax.jit, static_argnums=0)
def _follow(score: Score, outputs: jax.Array, targets: Any, left: jax.Array):
    order, depth = jnp.argmax(left, axis=-1), jnp.max(left, axis=-1)  # [S, R + 1, m]
    shards = jnp.arange(left.shape[2])

    def one(now: tuple[jax.Array, jax.Array]) -> jax.Array:
        order, depth = now
        answers = outputs[shards, order, jnp.maximum(depth, 1) - 1]
        alive = (depth > 0).reshape(-1, *(1,) * (answers.ndim - 1))
        total = jnp.sum(jnp.where(alive, answers, 0.0), axis=0)
        living = jnp.sum(depth > 0)
        return jnp.where(living > 0, score(total / jnp.maximum(living, 1), targets), jnp.nan)

    flat = (order.reshape(-1, len(shards)), depth.reshape(-1, len(shards)))
    scores = jax.lax.map(one, flat).reshape(depth.shape[:2])
    return scores, jnp.sum(depth > 0, axis=-1), depth
