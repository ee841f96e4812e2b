"""The convolution that all networks use, and pools.

On an accelerator it is XLA's own; on a CPU it is that of `nn.cpu.channels_last`, whose derivatives
are reverse-mode only. A gradient of a gradient is fine there; `jax.jvp` needs `plain_convolutions`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.nn.cpu import channels_last
from jaxunlearn.nn.layers.lowering import is_plain, lax_conv

_HE_NORMAL = nnx.initializers.he_normal()
# PyTorch's default for convolutions and linear layers: Kaiming uniform with a = sqrt(5), that is
# uniform within +-1 / sqrt(fan_in).
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 in the form of the residual networks: normal(0, sqrt(2 / (k k n_out))).
fan_out_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in all networks).

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C / groups, F].
        stride: step along both axes.
        padding: zeros on each side, as in PyTorch; by default k // 2, which for odd k and stride 1
            keeps height and width.
        groups: number of equal parts of the channels; each part of F sees its part of C alone. On a
            CPU they are so many convolutions, so that few of many channels are meant.

    Returns:
        [B, H', W', F] with H' = (H + 2 padding - k) // stride + 1. An infinite input may become NaN
        around where it stands.

    Raises:
        ValueError: the kernel does not fit the input, in shape or type.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"x is {list(x.shape)} and kernel {list(kernel.shape)}; [B, H, W, C] and [k, k, C, F] "
            "are needed"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype} and kernel {kernel.dtype}; one type is needed for both")
    size = kernel.shape[0]
    padding = size // 2 if padding is None else padding
    if groups < 1 or x.shape[-1] % groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"groups is {groups}; it must divide the channels in, {x.shape[-1]}, and out, "
            f"{kernel.shape[-1]}"
        )
    n_in = x.shape[-1] // groups
    if kernel.shape[1] != size or kernel.shape[2] != n_in:
        raise ValueError(
            f"kernel is {list(kernel.shape)}; [k, k, {n_in}, F] fits x, {list(x.shape)}"
        )
    if stride < 1 or padding < 0 or min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(
            f"stride is {stride} and padding {padding}; a stride of at least 1 and a padding that "
            f"leaves room for a {size}x{size} kernel on {x.shape[1]}x{x.shape[2]} are needed"
        )
    if is_plain(x) or len(x) == 0:
        return lax_conv(x, kernel, stride, ((padding, padding), (padding, padding)), groups=groups)
    if groups > 1:
        return channels_last.grouped(x, kernel, stride, padding, groups)
    return channels_last.conv(x, kernel, stride, padding)


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped: [B, H, W, C].

    Equal maxima share the gradient.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    # Reshape and max: a fifth of a small network's step is saved against reduce_window.
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pool with stride 2, as if infinitely small values stood around: [B, H, W, C]."""
    for axis in (1, 2):
        n = (x.shape[axis] + 1) // 2
        around = [(0, 0)] * 4
        around[axis] = (1, 2 * n - x.shape[axis])
        padded = jnp.pad(x, around, constant_values=-jnp.inf)
        # Three slices: the gradient of `reduce_window` is slow on a CPU.
        thirds = [jax.lax.slice_in_dim(padded, i, i + 2 * n - 1, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, thirds)
    return x


def global_max_pool(x: jax.Array) -> jax.Array:
    """The maximum over height and width: [B, H, W, C] to [B, C]."""
    return x.max(axis=(1, 2))


def avg_pool(x: jax.Array) -> jax.Array:
    """The mean over height and width: [B, H, W, C] to [B, C]."""
    return x.mean(axis=(1, 2))


class Conv(nnx.Module):
    """A convolution layer; stride, padding and groups as in `conv`; `init` draws the kernel."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        use_bias: bool = True,
        init: nnx.Initializer = _HE_NORMAL,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (size, size, n_in // groups, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if use_bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv(x, self.kernel[...], self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias[...]
