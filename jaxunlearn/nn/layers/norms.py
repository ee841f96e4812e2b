"""Normalisation of single examples: by the root mean square, or by mean and variance."""

import re

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree


def affine(params: Tree) -> tuple[str, ...]:
    """Patterns that select what normalisation layers scale and shift by, one for each leaf.

    These are all leaves beside one named `scale`, as the layers here and Flax's have it: in the
    library's networks, `.*norm.*/(scale|bias)`.
    """
    leaves = [name.rpartition("/") for name in tree.named(params)]
    norms = {module for module, _, last in leaves if last == "scale"}
    return tuple(re.escape("".join(leaf)) for leaf in leaves if leaf[0] in norms)


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


class LayerNorm(nnx.Module):
    """Mean 0 and variance 1, then scale and bias, in float32; the input's type comes out."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale.get_value(), self.bias.get_value(), self.eps)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """See `LayerNorm`."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale + bias).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Mean 0 and variance 1 of each image's groups of channels (Wu & He 2018), scale and bias.

    Images [B, H, W, C] in, the same out; PyTorch's `GroupNorm` with its epsilon of 1e-5.

    Args:
        n: number of channels C.
        groups: number of equal groups of neighbouring channels.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    def __init__(self, n: int, groups: int, eps: float = 1e-5):
        if groups < 1 or n % groups:
            raise ValueError(f"groups is {groups}; it must divide the {n} channels")
        self.scale = nnx.Param(jnp.ones(n))
        self.bias = nnx.Param(jnp.zeros(n))
        self.groups, self.eps = groups, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        groups = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        groups = groups - jnp.mean(groups, axis=(1, 2, 4), keepdims=True)
        var = jnp.mean(groups * groups, axis=(1, 2, 4), keepdims=True)
        normal = (groups * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
