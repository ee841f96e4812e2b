"""BatchNorm with PyTorch's arithmetic."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-5
MOMENTUM = 0.1  # weight of the new batch in the running statistics


class BatchNorm(nnx.Module):
    """BatchNorm over all axes but one (Ioffe & Szegedy 2015), as PyTorch's `BatchNorm2d`.

    In training the *biased* variance of the batch normalises and the *unbiased* one enters the
    running variance; Flax's layer keeps the biased one. Everything is float32.

    Args:
        n: number of channels.
        axis: that of the channels, the last or the first one.
        rngs: taken as by every layer; nothing is drawn.
    """

    def __init__(self, n: int, *, axis: Literal[-1, 0] = -1, rngs: nnx.Rngs | None = None):
        del rngs
        self.axis = axis
        self.scale = nnx.Param(jnp.ones(n))
        self.bias = nnx.Param(jnp.zeros(n))
        self.mean = nnx.BatchStat(jnp.zeros(n))
        self.var = nnx.BatchStat(jnp.ones(n))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if train:
            mean, var = _moments(x, self.axis)
            self._remember(mean, var, n=x.size // x.shape[self.axis])
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # One multiplication and one addition per value.
        return x * _along(factor, x, self.axis) + _along(
            self.bias[...] - mean * factor, x, self.axis
        )

    def _remember(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        if n == 1:
            raise ValueError(
                "BatchNorm: x has 1 value per channel; training needs at least 2 for a variance"
            )
        unbiased = var * (n / (n - 1))
        self.mean[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean)
        self.var[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.var[...] + MOMENTUM * unbiased)


def _moments(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, [C] each."""
    axes = tuple(range(x.ndim - 1) if axis == -1 else range(1, x.ndim))
    mean = jnp.mean(x, axes)
    # Two passes: E[x^2] - E[x]^2 loses the digits of a variance that is small beside the mean.
    return mean, jnp.mean(jnp.square(x - _along(mean, x, axis)), axes)


def _along(values: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Values of channels, shaped to be broadcast over `x`."""
    return values if axis == -1 else values.reshape(-1, *[1] * (x.ndim - 1))
