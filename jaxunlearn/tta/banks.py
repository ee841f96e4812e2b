"""AdaContrast's stores of features of past images: a queue of keys, and a bank of neighbours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key, fold


class Queue(NamedTuple):
    """Keys of past views, the oldest replaced first.

    Attributes:
        features: normalised, [Q, D].
        labels: predicted classes, [Q].
        next: the row that is replaced next.
    """

    features: jax.Array
    labels: jax.Array
    next: jax.Array


def random_queue(key: Key, size: int, n_features: int, n_classes: int) -> Queue:
    """The queue before the first batch: random directions with random classes."""
    features = jax.random.normal(fold(key, "features"), (size, n_features))
    labels = jax.random.randint(fold(key, "labels"), (size,), 0, n_classes)
    return Queue(normalised(features), labels, jnp.zeros((), jnp.int32))


def enqueue(queue: Queue, features: jax.Array, labels: jax.Array, kept: jax.Array) -> Queue:
    """The queue with the rows of a batch that are kept."""
    size = len(queue.labels)
    rows = _rows(kept, queue.next, size, size)
    return Queue(
        queue.features.at[rows].set(features, mode="drop"),
        queue.labels.at[rows].set(labels, mode="drop"),
        (queue.next + jnp.sum(kept)) % size,
    )


class Bank(NamedTuple):
    """Features of past images with the probabilities of their classes.

    It grows by whole batches until it has Q rows or more; then rows are replaced in turn, from
    `next` on, as published: after its growth that is the first row of the last batch.

    Attributes:
        features: [Q + B - 1, D].
        probabilities: [Q + B - 1, K].
        length: rows that are filled.
        next: the row that is replaced next.
    """

    features: jax.Array
    probabilities: jax.Array
    length: jax.Array
    next: jax.Array


def empty_bank(size: int, batch_size: int, n_features: int, n_classes: int) -> Bank:
    """A bank without rows, which grows to `size`."""
    rows, zero = size + batch_size - 1, jnp.zeros((), jnp.int32)
    return Bank(jnp.zeros((rows, n_features)), jnp.zeros((rows, n_classes)), zero, zero)


def store(
    bank: Bank, size: int, features: jax.Array, probabilities: jax.Array, kept: jax.Array
) -> Bank:
    """The bank with the rows of a batch that are kept; it grows up to `size`."""
    n, grows = jnp.sum(kept), bank.length < size
    length = bank.length + grows * n
    start = jnp.where(grows, bank.length, bank.next)
    rows = _rows(kept, start, length, len(bank.features))
    return Bank(
        bank.features.at[rows].set(features, mode="drop"),
        bank.probabilities.at[rows].set(probabilities, mode="drop"),
        length,
        (bank.next + n) % jnp.maximum(length, 1),
    )


def of_neighbours(bank: Bank, features: jax.Array, n_neighbours: int = 10) -> jax.Array:
    """The mean probabilities [B, K] of the rows of largest cosine with features [B, D]."""
    cosines = normalised(features) @ normalised(bank.features).T
    is_filled = jnp.arange(len(bank.features)) < bank.length
    cosines = jnp.where(is_filled, cosines, -jnp.inf)
    most, rows = jax.lax.top_k(cosines, min(n_neighbours, len(bank.features)))
    weights = jnp.isfinite(most).astype(features.dtype)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
    return jnp.einsum("bn,bnk->bk", weights, bank.probabilities[rows])


def normalised(rows: jax.Array) -> jax.Array:
    """Rows [N, D] of length 1; 0 stays, with gradient 0."""
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows / jnp.sqrt(jnp.maximum(squares, 1e-24))


def _rows(kept: jax.Array, start: jax.Array, modulus: int | jax.Array, none: int) -> jax.Array:
    """Rows of a ring for what is kept of a batch, in its order; `none` for what is not written.

    Of more than fit, the last ones are written.
    """
    order = jnp.cumsum(kept) - 1
    is_written = kept & (order >= jnp.sum(kept) - modulus)
    return jnp.where(is_written, (start + order) % jnp.maximum(modulus, 1), none)
