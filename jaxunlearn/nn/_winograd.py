"""Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, 2016): 16 products where 36 stand.

A tile of 4x4 inputs gives 2x2 outputs, Y = A'[(G g G')(B' d B)]A. The products over channels are 16
matrix products; the transforms only add. Next larger tiles save more but lose two digits.
"""

import jax
import jax.numpy as jnp
import numpy as np

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution of stride 1 without padding.

    Args:
        x: [B, H, W, C], padded already.
        kernel: [3, 3, C, F].

    Returns:
        [B, H - 2, W - 2, F].
    """
    batch, height, width, n_in = x.shape
    height, width, n_out = height - 2, width - 2, kernel.shape[-1]
    # An odd last row or column of outputs needs half a tile of zeros.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    # One axis after the other: a fusion for both at once takes three times as long to compile.
    tiles = _input(_input(x, 1, rows), 3, columns)  # [4 j, 4 i, B, rows, columns, C]
    transform = jnp.asarray(_KERNEL, kernel.dtype)
    kernels = jnp.einsum("ia,jb,abcf->jicf", transform, transform, kernel)
    products = jax.lax.dot_general(
        tiles.reshape(16, -1, n_in),
        kernels.reshape(16, n_in, n_out),
        (((2,), (1,)), ((0,), (0,))),
    ).reshape(4, 4, batch, rows, columns, n_out)
    y = _output(_output(products, 4), 2)  # [B, rows, 2, columns, 2, F]
    return y.reshape(batch, 2 * rows, 2 * columns, n_out)[:, :height, :width]


def _input(x: jax.Array, axis: int, n: int) -> jax.Array:
    """B' d along one axis, for n overlapping windows of 4; the 4 results lead."""
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis) for i in range(4))
    return jnp.stack([a - c, b + c, c - b, b - d])


def _output(x: jax.Array, axis: int) -> jax.Array:
    """A' m along the leading axis; the 2 results become axis `axis` of what is left."""
    a, b, c, d = x
    return jnp.stack([a + b + c, b - c - d], axis)
