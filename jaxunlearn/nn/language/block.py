"""One layer of a decoder: grouped-query attention with rotary positions, and a gated MLP.

Shapes: B sequences, T tokens, S slots that are attended to (T, or those of a cache), D width, H
query heads, K key/value heads, h width of a head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn.nn.language.config import Config, RopeScaling
from jaxunlearn.nn.layers.linear import Linear

_MASKED = -1e30  # finite, so that a row that may attend to nothing gives no NaN


class RMSNorm(nnx.Module):
    """Divides by the root mean square in float32, rounds to the input's type, then scales."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale.get_value(), self.eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """See `RMSNorm`; the order of rounding is that of transformers."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * wide.astype(x.dtype)


class Block(nnx.Module):
    """h += attention(norm(h)); h += down(silu(gate(z)) * up(z)), z = norm(h)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        c = self.config = config
        std = 0.02
        deep = std / math.sqrt(2 * c.n_layers)  # what is added to the residual stream
        queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        bias = {"use_bias": c.qkv_bias, "std": std, "rngs": rngs}
        self.attention_norm = RMSNorm(c.width, c.eps)
        self.q = Linear(c.width, queries, **bias)
        self.k = Linear(c.width, keys, **bias)
        self.v = Linear(c.width, keys, **bias)
        self.o = Linear(queries, c.width, use_bias=c.output_bias, std=deep, rngs=rngs)
        self.q_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        bias = {"use_bias": c.mlp_bias, "rngs": rngs}
        self.mlp_norm = RMSNorm(c.width, c.eps)
        self.gate = Linear(c.width, c.mlp_width, std=std, **bias)
        self.up = Linear(c.width, c.mlp_width, std=std, **bias)
        self.down = Linear(c.mlp_width, c.width, std=deep, **bias)

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        allowed_BTS: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        at: jax.Array | int = 0,
    ):
        """One layer.

        Args:
            x_BTD: the residual stream.
            rotation: (cos, sin) of every position, float32 [B, T, h / 2].
            allowed_BTS: bool, which slots a token may attend to.
            cache: keys and values of all slots, each [B, S, K, h], or None: the tokens' own.
            at: the first slot that these tokens take, with a cache.

        Returns:
            The residual stream, and (with a cache) the cache with these tokens in it.
        """
        c = self.config
        batch, length, _ = x_BTD.shape
        z = self.attention_norm(x_BTD)
        q = self.q(z).reshape(batch, length, c.n_heads, c.head_dim)
        k = self.k(z).reshape(batch, length, c.n_kv_heads, c.head_dim)
        v = self.v(z).reshape(batch, length, c.n_kv_heads, c.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            put = jax.lax.dynamic_update_slice_in_dim
            k = put(cache[0], k.astype(cache[0].dtype), at, axis=1)
            v = put(cache[1], v.astype(cache[1].dtype), at, axis=1)
            cache = (k, v)
        heard = attend(q, k.astype(q.dtype), v.astype(q.dtype), allowed_BTS)
        x_BTD = x_BTD + self.o(heard.reshape(batch, length, -1))
        z = self.mlp_norm(x_BTD)
        x_BTD = x_BTD + self.down(jax.nn.silu(self.gate(z)) * self.up(z))
        return x_BTD if cache is None else (x_BTD, cache)


def attend(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, allowed_BTS: jax.Array | None = None
) -> jax.Array:
    """Softmax attention; query head i reads key/value head i // (H / K). Softmax in float32.

    Without `allowed_BTS` every token reads all slots.
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


def rotation(positions_BT: jax.Array, config: Config) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angle of every position and pair, float32 [B, T, h / 2]."""
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNh: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + h / 2) of every head, computed in the input's type."""
    cos, sin = (part[:, :, None].astype(x_BTNh.dtype) for part in rotation)
    first, second = jnp.split(x_BTNh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair, float32 [h / 2]: theta^(-2 i / h), scaled as Llama 3's.

    Constants of a program, computed on the host: XLA's powers are off by a few units in the last
    place, which positions beyond 4,000 turn into angles that are off by 1e-3. So are NumPy's of
    float32 on some processors; the powers are therefore float64's, rounded.

    With `scaling`, wavelengths below `context / high` keep their frequency, those above
    `context / low` have it divided by `factor`, and those between are interpolated.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.float64(theta) ** exponents.astype(np.float64)
    frequencies = np.float32(1) / powers.astype(np.float32)
    if scaling is None:
        return frequencies
    wavelengths = np.float32(2 * math.pi) / frequencies
    kept = (scaling.context / wavelengths - scaling.low) / (scaling.high - scaling.low)
    kept = np.clip(kept, 0.0, 1.0)
    scaled = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return scaled.astype(np.float32)
