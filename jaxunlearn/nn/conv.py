"""The convolution and the poolings that all networks use."""

import jax
import jax.numpy as jnp
from flax import nnx


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | None = None) -> jax.Array:
    """Convolution.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, F].
        stride: of both axes.
        padding: zeros on each side of both axes; `None` is `k // 2`, which at stride 1 and odd `k`
            keeps height and width.

    Returns:
        [B, (H + 2 padding - k) // stride + 1, (W + 2 padding - k) // stride + 1, F].
    """
    pad = kernel.shape[0] // 2 if padding is None else padding
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped: [B, H, W, C]."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    # Reshape and max: a fifth of a small network's step is saved against reduce_window.
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def global_max_pool(x: jax.Array) -> jax.Array:
    """The largest value of each channel: [B, H, W, C] -> [B, C]."""
    return x.max(axis=(1, 2))


def avg_pool(x: jax.Array) -> jax.Array:
    """The mean of each channel: [B, H, W, C] -> [B, C]."""
    return x.mean(axis=(1, 2))


class Conv(nnx.Module):
    """A convolution layer; `stride` and `padding` are those of `conv`."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if use_bias else None
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + self.bias[...]
