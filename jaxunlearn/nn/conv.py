"""The convolution that all networks use.

On a CPU it is one matrix product over shifted slices of the input: XLA's own convolution loses its
weight gradient inside `scan` (50 to 100 times slower) and becomes a grouped convolution under a
`vmap` over models, while a matrix product keeps its speed in both. Accelerators take XLA's.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with stride 1 and "same" padding.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, F], k odd.

    Returns:
        [B, H, W, F].
    """
    size, _, n_in, n_out = kernel.shape
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    _, height, width, _ = x.shape
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(size * size * n_in, n_out)


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped: [B, H, W, C]."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    # Reshape and max: a fifth of a small network's step is saved against reduce_window.
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class Conv(nnx.Module):
    """A convolution layer, stride 1, "same" padding, odd kernel size."""

    def __init__(
        self, n_in: int, n_out: int, size: int = 3, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]
