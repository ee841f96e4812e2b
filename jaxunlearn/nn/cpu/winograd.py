"""Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, 2016): 16 products where 36 stand.

A tile of 4x4 inputs gives 2x2 outputs, Y = A'[(G g G')(B' d B)]A. The products over channels are 16
matrix products; the transforms only add. Next larger tiles save more but lose two digits.

All of it is linear, and the gradients are its transposes: that of the inputs is a convolution
again, that of the kernel is G'[sum over tiles of (B' d B)(A dY A')]G, again 16 products for 36.
"""

import jax
import jax.numpy as jnp
import numpy as np

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G


def conv(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """A 3x3 convolution of stride 1 of what is padded already: [B, H, W, C] -> [B, H-2, W-2, F].

    The kernels [16, C, F] are `transformed` ones.
    """
    batch, height, width, _ = x.shape
    height, width = height - 2, width - 2
    rows, columns = (height + 1) // 2, (width + 1) // 2
    products = jax.lax.dot_general(_tiles(x), kernels, (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(4, 4, batch, rows, columns, -1)
    y = _output(_output(products, 4), 2)  # [B, rows, 2, columns, 2, F]
    return y.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]


def products(x: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel's gradient before `transformed_back`, a sum over images: [16, C, F].

    Of inputs x [B, H, W, C], padded already, and the outputs' gradient g [B, H - 2, W - 2, F].
    """
    _, height, width, n_out = g.shape
    g = jnp.pad(g, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    g = _output_back(_output_back(g, 1), 3).reshape(16, -1, n_out)
    return jax.lax.dot_general(_tiles(x), g, (((1,), (1,)), ((0,), (0,))))


def transformed(kernel: jax.Array) -> jax.Array:
    """G g G' for all channels: [3, 3, C, F] -> [16, C, F]."""
    g = jnp.asarray(_KERNEL, kernel.dtype)
    return jnp.einsum("ia,jb,abcf->jicf", g, g, kernel).reshape(16, *kernel.shape[2:])


def transformed_back(products: jax.Array) -> jax.Array:
    """The transpose of `transformed`: [16, C, F] -> [3, 3, C, F]."""
    g = jnp.asarray(_KERNEL, products.dtype)
    return jnp.einsum("ia,jb,jicf->abcf", g, g, products.reshape(4, 4, *products.shape[1:]))


def _tiles(x: jax.Array) -> jax.Array:
    """B' d B of all overlapping 4x4 windows: [B, H, W, C] -> [16, B rows columns, C]."""
    _, height, width, n_in = x.shape
    # An odd last row or column of outputs needs half a tile of zeros.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = (height - 1) // 2, (width - 1) // 2
    # One axis after the other: a fusion for both at once takes three times as long to compile.
    return _input(_input(x, 1, rows), 3, columns).reshape(16, -1, n_in)


def _input(x: jax.Array, axis: int, n: int) -> jax.Array:
    """B' d along one axis, for n overlapping windows of 4; the 4 results lead."""
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis) for i in range(4))
    return jnp.stack([a - c, b + c, c - b, b - d])


def _output(x: jax.Array, axis: int) -> jax.Array:
    """A' m along the leading axis; the 2 results become axis `axis` of what is left."""
    a, b, c, d = x
    return jnp.stack([a + b + c, b - c - d], axis)


def _output_back(y: jax.Array, axis: int) -> jax.Array:
    """The transpose of `_output` for the pairs along one axis; the 4 results lead."""
    a, b = (jax.lax.slice_in_dim(y, i, None, 2, axis) for i in range(2))
    return jnp.stack([a, a + b, a - b, -b])
