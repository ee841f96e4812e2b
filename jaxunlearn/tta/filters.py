"""Which samples a method learns from: sure ones, new ones; and how much each counts."""

import jax
import jax.numpy as jnp

from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import losses, masked

Kept = jax.Array | None


def sure(logits: jax.Array, margin: float) -> jax.Array:
    """Whether the entropy is below `margin` times ln K, bool [B] (EATA, equation 3)."""
    return losses.entropy(logits) < most_entropy(margin, logits.shape[-1])


def most_entropy(margin: float, n_classes: int) -> jax.Array:
    """`margin` times ln K, in nats."""
    return margin * jnp.log(jnp.asarray(n_classes, jnp.float32))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines of vectors [..., D]; 0 for a vector of zeros."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-8)


def moved(average: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """The average of class probabilities, moved towards those of a batch."""
    return momentum * average + (1 - momentum) * new


def certainty_and_diversity(
    logits: jax.Array, average: jax.Array, temperature: float, kept: Kept = None
) -> tuple[jax.Array, jax.Array]:
    """Weights of ROID (section 3.2): exp(diversity * certainty / temperature).

    Diversity is 1 - the cosine with the average of class probabilities, certainty minus the
    entropy, each scaled to [0, 1] over the batch.

    Returns:
        Weights [B], and which samples are at least as diverse as the mean of the batch, bool [B].
    """
    diversity = _unit(1 - cosine(average, jax.nn.softmax(logits)), kept)
    certainty = _unit(-losses.entropy(logits), kept)
    is_diverse = diversity >= masked.mean(diversity, kept)
    is_diverse = is_diverse if kept is None else is_diverse & kept
    weights = jnp.exp(diversity * certainty / temperature)
    return jnp.where(is_diverse, weights, 0), is_diverse


def _unit(values: jax.Array, kept: Kept) -> jax.Array:
    """Values scaled so that the least is 0 and the largest 1; all 0 where they are equal."""
    least, most = masked.minimum(values, kept), masked.maximum(values, kept)
    span = jnp.where(most > least, most - least, 1)
    return jnp.where(most > least, (values - least) / span, 0)


def prior_corrected(logits: jax.Array, kept: Kept = None) -> jax.Array:
    """Logits times the smoothed class prior of their batch (ROID, section 3.4)."""
    n_classes = logits.shape[-1]
    n = len(logits) if kept is None else jnp.maximum(jnp.sum(kept), 1)
    prior = masked.mean(jax.nn.softmax(logits), kept)
    smooth = jnp.maximum(1 / n, 1 / n_classes) / jnp.max(prior)
    return logits * (prior + smooth) / (1 + smooth * n_classes)


def towards(params: Tree, other: Tree, momentum: float | jax.Array) -> Tree:
    """momentum * params + (1 - momentum) * other."""
    return jax.tree.map(lambda p, o: momentum * p + (1 - momentum) * o, params, other)
