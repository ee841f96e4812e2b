"""BatchNorm with PyTorch's arithmetic."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.model import RUNNING, Statistics, switches

EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """BatchNorm over all axes but one (Ioffe & Szegedy 2015), as PyTorch's `BatchNorm2d`.

    In training the *biased* variance of the batch normalises and the *unbiased* one enters the
    running variance; Flax's layer keeps the biased one. Everything is float32.

    Args:
        n: number of channels.
        axis: axis of the channels, the last or the first one.
        momentum: share of the batch in an update of the running statistics, above 0, at most 1.
        rngs: ignored; every layer takes them.

    Raises:
        ValueError: a momentum out of range; or, at a call, one value per channel, which has no
            variance.
    """

    def __init__(
        self,
        n: int,
        *,
        axis: Literal[-1, 0] = -1,
        momentum: float = 0.1,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum is {momentum}; above 0 and at most 1 is needed")
        self.axis, self.momentum = axis, momentum
        self.scale = nnx.Param(jnp.ones(n))
        self.bias = nnx.Param(jnp.zeros(n))
        self.mean = nnx.BatchStat(jnp.zeros(n))
        self.var = nnx.BatchStat(jnp.ones(n))

    def __call__(
        self, x: jax.Array, train: bool = False, *, statistics: Statistics | None = None
    ) -> jax.Array:
        """Normalises x.

        Args:
            x: [..., n], or [n, ...] with `axis=0`.
            train: whether to use statistics of the batch and update the running ones; else these.
            statistics: finer choice, in place of `train`.
        """
        asked = (None, None) if statistics is None else statistics
        mean, var = self._statistics(x, switches(train, *asked).statistics)
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # One multiplication and one addition per value.
        return x * _along(factor, x, self.axis) + _along(
            self.bias[...] - mean * factor, x, self.axis
        )

    def _statistics(self, x: jax.Array, kind: Statistics) -> tuple[jax.Array, jax.Array]:
        """Mean and variance to normalise with; the running ones are updated."""
        running = self.mean[...], self.var[...]
        if kind == RUNNING:
            return running
        n = x.size // x.shape[self.axis]
        if n == 1 and (kind.update or kind.source == "batch"):
            raise ValueError(
                "BatchNorm: x has 1 value per channel; training needs at least 2 for a variance"
            )
        batch = _moments(x, self.axis)
        if kind.update:
            self._remember(*batch, n)
        if isinstance(kind.source, str):  # "batch"
            return batch
        mean, var = (_between(kind.source, *both) for both in zip(batch, running, strict=True))
        return mean, var

    def _remember(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        unbiased = var * (n / (n - 1))
        for kept, value in ((self.mean, mean), (self.var, unbiased)):
            kept.set_value(jax.lax.stop_gradient(_between(self.momentum, value, kept[...])))


def _between(share: float, batch: jax.Array, running: jax.Array) -> jax.Array:
    return (1 - share) * running + share * batch


def _moments(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, [C] each."""
    axes = tuple(range(x.ndim - 1) if axis == -1 else range(1, x.ndim))
    mean = jnp.mean(x, axes)
    # Two passes: E[x^2] - E[x]^2 loses the digits of a variance that is small beside the mean.
    return mean, jnp.mean(jnp.square(x - _along(mean, x, axis)), axes)


def _along(values: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Values of channels, shaped to be broadcast over `x`."""
    return values if axis == -1 else values.reshape(-1, *[1] * (x.ndim - 1))
