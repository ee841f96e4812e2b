"""One layer of a decoder: grouped-query attention with rotary positions, and a gated MLP.

Shapes: B sequences, T tokens, S slots that are attended to (T, or those of a cache), D width, H
query heads, K key/value heads, h width of a head.
"""

import math

import jax
from flax import nnx

from jaxunlearn.nn.language.config import Config
from jaxunlearn.nn.layers.attention import attend
from jaxunlearn.nn.layers.linear import Linear
from jaxunlearn.nn.layers.norms import RMSNorm
from jaxunlearn.nn.layers.rotary import rotate


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
        at: jax.Array | int = 0,
        cache: tuple[jax.Array, jax.Array] | None = None,
    ):
        """One layer.

        Args:
            x_BTD: the residual stream.
            rotation: (cos, sin) of every position, float32 [B, T, h / 2].
            allowed_BTS: bool, the slots that a token may attend to.
            at: first slot that these tokens take, with a cache.
            cache: keys and values of all slots, each [B, S, K, h]; by default the tokens attend to
                each other alone.

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
        values = attend(q, k.astype(q.dtype), v.astype(q.dtype), allowed_BTS)
        x_BTD = x_BTD + self.o(values.reshape(batch, length, -1))
        z = self.mlp_norm(x_BTD)
        x_BTD = x_BTD + self.down(jax.nn.silu(self.gate(z)) * self.up(z))
        return x_BTD if cache is None else (x_BTD, cache)
