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
    grid = (batch, (height + 1) // 2, (width + 1) // 2)
    transform = jnp.asarray(_KERNEL, kernel.dtype)
    kernels = jnp.einsum("ia,jb,abcf->ijcf", transform, transform, kernel)
    # Sixteen arrays instead of one: each product reads its own tile elements, nothing is stacked.
    products = [
        [(v.reshape(-1, n_in) @ kernels[i, j]).reshape(*grid, n_out) for j, v in enumerate(row)]
        for i, row in enumerate(_inputs(x, *grid[1:]))
    ]
    rows = _outputs(*products, combine=lambda f, *rows: [f(*e) for e in zip(*rows, strict=True)])
    y = jnp.stack([jnp.stack(_outputs(*row), axis=3) for row in rows], axis=2)
    return y.reshape(batch, 2 * grid[1], 2 * grid[2], n_out)[:, :height, :width]


def _inputs(x: jax.Array, n_rows: int, n_columns: int) -> list[list[jax.Array]]:
    """B' d B for all tiles: 4 rows of 4 arrays [B, n_rows, n_columns, C]."""

    def along(x: jax.Array, axis: int, n: int) -> list[jax.Array]:
        a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis) for i in range(4))
        return [a - c, b + c, c - b, b - d]

    return [along(row, 2, n_columns) for row in along(x, 1, n_rows)]


def _outputs(a, b, c, d, combine=lambda f, *parts: f(*parts)):
    """A' m along one axis: two outputs of four products."""
    return [combine(lambda a, b, c: a + b + c, a, b, c), combine(lambda b, c, d: b - c - d, b, c, d)]
