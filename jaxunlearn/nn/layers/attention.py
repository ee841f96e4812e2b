"""Softmax attention.

Shapes: B sequences, T tokens, S slots that are attended to, H query heads, K key/value heads, h
width of a head.
"""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite, so that a row that may attend to nothing gives no NaN


def attend(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, allowed_BTS: jax.Array | None = None
) -> jax.Array:
    """Softmax attention with grouped query heads; the softmax is computed in float32.

    Args:
        q_BTHh: queries.
        k_BSKh: keys; query head i reads head i // (H / K) of them.
        v_BSKh: values.
        allowed_BTS: bool, the slots that each token may attend to; by default all.

    Returns:
        [B, T, H, h], in the type of the values.
    """
    batch, length, n_heads, head_dim = q_BTHh.shape
    n_kv = k_BSKh.shape[2]
    q = q_BTHh.reshape(batch, length, n_kv, n_heads // n_kv, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k_BSKh, preferred_element_type=jnp.float32)
    scores = scores * head_dim**-0.5
    if allowed_BTS is not None:
        scores = jnp.where(allowed_BTS[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_BSKh).reshape(q_BTHh.shape)
