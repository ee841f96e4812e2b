"""Losses on logits and features without labels; each gives one value per example.

Of the probabilities p = softmax(logits), in nats. `student` and `teacher` are logits; what shall
not get a gradient is stopped by the caller.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks


def entropy(logits: jax.Array) -> jax.Array:
    """-sum p log p: [B, K] -> [B] (TENT, Wang et al. 2021)."""
    return soft_cross_entropy(logits, logits)


def soft_cross_entropy(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """-sum softmax(teacher) log softmax(student): [B, K], [B, K] -> [B]."""
    return -jnp.sum(jax.nn.softmax(teacher) * jax.nn.log_softmax(student), axis=-1)


def symmetric_cross_entropy(
    student: jax.Array, teacher: jax.Array, alpha: float = 0.5
) -> jax.Array:
    """(1 - alpha) CE(teacher, student) + alpha CE(student, teacher) (RMT, section 3.1).

    The gradient with respect to the student flows through both terms; the second keeps it from
    vanishing where the teacher is sure.

    Args:
        student: [B, K].
        teacher: [B, K].
        alpha: the second term's share, from 0 to 1.

    Returns:
        [B].
    """
    forward = soft_cross_entropy(student, teacher)
    return (1 - alpha) * forward + alpha * soft_cross_entropy(teacher, student)


def soft_likelihood_ratio(logits: jax.Array, clip: float = 0.99) -> jax.Array:
    """-sum p log(p / (1 - p) + 1e-5), p clipped from above: [B, K] -> [B] (ROID, section 3.1)."""
    p = jnp.clip(jax.nn.softmax(logits), 0, clip)
    return -jnp.sum(p * jnp.log(p / (1 - p) + 1e-5), axis=-1)


def generalised_cross_entropy(logits: jax.Array, q: float = 0.8) -> jax.Array:
    """(1 - p_y^q) / q with the network's own label y: [B, K] -> [B] (RPL, Rusak et al. 2022)."""
    return (1 - jnp.max(jax.nn.softmax(logits), axis=-1) ** q) / q


def contrastive(
    views: jax.Array, temperature: float = 0.1, kept: jax.Array | None = None
) -> jax.Array:
    """Supervised contrastive loss over views, each of which is an anchor (RMT, section 3.2).

    Each row's positives are the other views of its example; all other rows stand in the
    denominator, also those of an example with the same features.

    Args:
        views: features [B, V, D]; they are normalised here.
        temperature: divides the cosines.
        kept: bool [B], the examples that count; by default all.

    Returns:
        [], the mean over anchors and their positives; 0 where nothing is kept.
    """
    checks.temperature("temperature", temperature)
    n, n_views, width = views.shape
    rows = jnp.swapaxes(views, 0, 1).reshape(n_views * n, width)
    rows = rows / jnp.maximum(_norms(rows), 1e-12)
    example = jnp.tile(jnp.arange(n), n_views)
    is_self = jnp.eye(n_views * n, dtype=bool)
    is_kept = jnp.ones(n_views * n, bool) if kept is None else jnp.tile(kept, n_views)
    similarity = rows @ rows.T / temperature
    others = jnp.where(is_self | ~is_kept, -jnp.inf, similarity)
    # An only row has no others; -inf would make its gradient NaN.
    total = jax.nn.logsumexp(jnp.where(is_kept[:, None], others, 0.0), axis=1, keepdims=True)
    is_positive = (example[:, None] == example) & ~is_self & is_kept[:, None]
    sums = jnp.sum(jnp.where(is_positive, similarity - total, 0), axis=1) / max(n_views - 1, 1)
    return -jnp.sum(sums) / jnp.maximum(jnp.sum(is_kept), 1)


def _norms(rows: jax.Array) -> jax.Array:
    """Euclidean norms [N, 1] whose gradient at 0 is 0 and not NaN."""
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    safe = jnp.where(squares > 0, squares, 1)
    return jnp.where(squares > 0, jnp.sqrt(safe), 0)
