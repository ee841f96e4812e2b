"""Plain pure losses, one value per example; reductions are the objective's business."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import checks


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]: logits [..., K], integer labels [...] -> [...], in nats."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the last axis of (outputs - targets)^2: [..., K], [..., K] -> [...]."""
    return jnp.mean(jnp.square(outputs - targets), axis=-1)


def kl_divergence(logits: jax.Array, teacher_logits: jax.Array, temperature=1.0) -> jax.Array:
    """KL(teacher || student) of softmaxes at a temperature, times temperature^2.

    The factor keeps gradients of the same size at any temperature (Hinton et al. 2015, section 2).

    Args:
        logits: student, [..., K].
        teacher_logits: teacher, [..., K].
        temperature: divides both logits, > 0 (at 0 there is no divergence, but an argmax).

    Returns:
        [...], in nats.

    Raises:
        ValueError: a temperature that is not positive and finite, unless it is traced.
    """
    checks.temperature("kl_divergence: temperature", temperature)
    log_p = jax.nn.log_softmax(teacher_logits / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    p = jnp.exp(log_p)
    gap = jnp.where(p > 0, log_p - log_q, 0)  # what both rule out (-inf) adds nothing
    return jnp.sum(p * gap, axis=-1) * temperature**2


def margins(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The label's logit minus the logsumexp of all others: the log odds of the label.

    This equals the logit-scaled confidence log p - log(1 - p) and does not overflow (Datamodel
    Matching, arXiv 2410.23232).

    Args:
        logits: [..., K], K >= 2; leading axes broadcast against those of `labels`.
        labels: integers in [0, K), [...].

    Returns:
        [...], floating point; NaN where a label is outside [0, K).
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(f"margins: logits have shape {logits.shape}; the last axis needs K >= 2")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"margins: labels have dtype {labels.dtype}; they must be integers")
    n_classes = logits.shape[-1]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    is_label = labels[..., None] == jnp.arange(n_classes)
    labelled = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jnp.where((labels >= 0) & (labels < n_classes), labelled - others, jnp.nan)
