"""BatchNorm with PyTorch's arithmetic."""

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-5
MOMENTUM = 0.1  # weight of the new batch in the running statistics


class BatchNorm(nnx.Module):
    """BatchNorm over all axes but the last (Ioffe & Szegedy 2015), as PyTorch's `BatchNorm2d`.

    In training the *biased* variance of the batch normalises and the *unbiased* one enters the
    running variance; Flax's layer keeps the biased one. Everything is float32.

    Args:
        n: number of channels, the size of the last axis.
        rngs: taken as by every layer; nothing is drawn.
    """

    def __init__(self, n: int, *, rngs: nnx.Rngs | None = None):
        del rngs
        self.scale = nnx.Param(jnp.ones(n))
        self.bias = nnx.Param(jnp.zeros(n))
        self.mean = nnx.BatchStat(jnp.zeros(n))
        self.var = nnx.BatchStat(jnp.ones(n))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if train:
            mean, var = _moments(x)
            self._remember(mean, var, n=x.size // x.shape[-1])
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # One multiplication and one addition per value.
        return x * factor + (self.bias[...] - mean * factor)

    def _remember(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        if n == 1:
            raise ValueError(
                "BatchNorm: x has 1 value per channel; training needs at least 2 for a variance"
            )
        unbiased = var * (n / (n - 1))
        self.mean[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean)
        self.var[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.var[...] + MOMENTUM * unbiased)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel: [..., C] -> [C], [C]."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    # Two passes: E[x^2] - E[x]^2 loses the digits of a variance that is small beside the mean.
    return mean, jnp.mean(jnp.square(x - mean), axes)
