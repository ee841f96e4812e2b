"""BatchNorm with PyTorch's arithmetic."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.model import Statistics, switches

EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """BatchNorm over all axes but one (Ioffe & Szegedy 2015), as PyTorch's `BatchNorm2d`.

    In training the *biased* variance of the batch normalises and the *unbiased* one enters the
    running variance; Flax's layer keeps the biased one. Statistics and arithmetic are float32 for
    inputs of half precision too, whose type comes out.

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
        asked = (None, None) if statistics is None else statistics[:2]
        examples = None if statistics is None else statistics.examples
        kind = switches(train, *asked, examples=examples).statistics
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = self._statistics(wide, kind)
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # One multiplication and one addition per value.
        y = wide * _along(factor, x, self.axis) + _along(
            self.bias[...] - mean * factor, x, self.axis
        )
        return y.astype(x.dtype)

    def _statistics(self, x: jax.Array, kind: Statistics) -> tuple[jax.Array, jax.Array]:
        """Mean and variance to normalise with; the running ones are updated."""
        running = self.mean[...], self.var[...]
        if kind.source == "running":
            return running
        n = x.size // x.shape[self.axis]
        mixture = kind.mixture
        if n == 1 and (kind.update or mixture is None):
            raise ValueError(
                "BatchNorm: x has 1 value per channel; training needs at least 2 for a variance"
            )
        mean, var, n = _moments(x, self.axis, kind.examples)
        unbiased = var * (n / (max(n - 1, 1) if kind.examples is None else jnp.maximum(n - 1, 1)))
        used = mean, var
        if mixture is not None:
            of_batch = unbiased if mixture.unbiased else var
            used = (
                _between(mixture.share, mean, running[0]),
                _between(mixture.share, of_batch, running[1]),
            )
        if kind.update and mixture is not None and mixture.moving:
            self._keep(*used)
        elif kind.update:
            pairs = zip((mean, unbiased), running, strict=True)
            self._keep(*(_between(self.momentum, *pair) for pair in pairs))
        return used

    def _keep(self, mean: jax.Array, var: jax.Array) -> None:
        self.mean.set_value(jax.lax.stop_gradient(mean))
        self.var.set_value(jax.lax.stop_gradient(var))


def _between(share: float, batch: jax.Array, running: jax.Array) -> jax.Array:
    return (1 - share) * running + share * batch


def _moments(
    x: jax.Array, axis: int, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, float | jax.Array]:
    """Mean and biased variance of each channel, [C] each, and how many values they are of."""
    axes = tuple(range(x.ndim - 1) if axis == -1 else range(1, x.ndim))
    n = x.size // x.shape[axis]
    if mask is None:
        mean = jnp.mean(x, axes)
        # Two passes: E[x^2] - E[x]^2 loses the digits of a variance that is small beside the mean.
        return mean, jnp.mean(jnp.square(x - _along(mean, x, axis)), axes), n
    # The examples are the first axis behind channels that are the last, and the other way round.
    weights = mask.astype(x.dtype)
    weights = weights.reshape(-1, *[1] * (x.ndim - 1)) if axis == -1 else weights
    count = jnp.sum(weights) * (n // len(mask))
    share = weights / jnp.maximum(count, 1)
    mean = jnp.sum(x * share, axes)
    return mean, jnp.sum(jnp.square(x - _along(mean, x, axis)) * share, axes), count


def _along(values: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Values of channels, shaped to be broadcast over `x`."""
    return values if axis == -1 else values.reshape(-1, *[1] * (x.ndim - 1))
