"""A linear layer whose kernel may carry an adapter (`core.adapters.LowRank`)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core import products
from jaxunlearn.core.adapters import Dropped, LowRank


class Linear(nnx.Module):
    """`x @ kernel + bias`, computed in the type of `x`."""

    def __init__(
        self, n_in: int, n_out: int, *, use_bias: bool = False, std: float, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel.get_value().astype(x.dtype)
        y = x @ kernel if isinstance(kernel, LowRank | Dropped) else products.dense(x, kernel)
        return y if self.bias is None else y + self.bias.get_value().astype(x.dtype)
