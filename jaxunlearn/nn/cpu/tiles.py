"""Convolutions whose shifted pixels would not fit a CPU's cache: built and used a tile at a time.

A convolution is a product of its kernel with columns of shifted pixels, [k k C, pixels]. For a
hundred images of 32 x 32 x 16 these are 75 MB, written and read again from memory; a tile of some
rows of some images stays in the cache; value and gradients take a third of the time (2-core CPU).
The gradient with respect to both pixels and kernel reads one set of columns, those of `g`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_CACHE = 1_600_000  # bytes of a tile's columns
_IMAGES = 32  # of a tile, at most: more make rows too long for it


def n_bytes(x: jax.Array, kernel: jax.Array, padding: int) -> int:
    """Size of all columns at once."""
    height, width = _sides(x, kernel, padding)
    return x.dtype.itemsize * kernel[..., 0].size * height * width * x.shape[3]


def shifted(x: jax.Array, size: int) -> jax.Array:
    """What a kernel of k x k sees: [C, H, W, B] -> [k k C, H - k + 1, W - k + 1, B]."""
    height, width = (side - size + 1 for side in x.shape[1:3])
    shifts = [(i, j) for i in range(size) for j in range(size)]
    # A copy: fused into the products, pixels would be gathered again in each of them.
    return jax.lax.optimization_barrier(
        jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in shifts])
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """`batch_last.conv` in tiles."""
    flat = kernel.reshape(-1, kernel.shape[3]).T
    y = jnp.zeros((len(flat), *_sides(x, kernel, padding), x.shape[3]), x.dtype)
    return _over_tiles(
        lambda y, columns, tile: tile.write(y, flat @ columns), y, x, len(kernel), padding
    )


def _backward(padding: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    x, kernel = residuals
    size, _, n_in, n_out = kernel.shape
    # [k, k, F, C]: from what is above a pixel back to it.
    back = jnp.swapaxes(kernel[::-1, ::-1], 2, 3).reshape(-1, n_in)

    def add(sums, columns, tile):
        dx, dback = sums
        return tile.write(dx, back.T @ columns), dback + columns @ tile.read(x).reshape(n_in, -1).T

    start = jnp.zeros_like(x), jnp.zeros_like(back)
    dx, dback = _over_tiles(add, start, g, size, size - 1 - padding)
    dkernel = jnp.swapaxes(dback.reshape(size, size, n_out, n_in), 2, 3)[::-1, ::-1]
    return dx, dkernel


conv.defvjp(lambda x, kernel, padding: (conv(x, kernel, padding), (x, kernel)), _backward)


class _Tile:
    """Some rows of some images."""

    def __init__(self, row: jax.Array, image: jax.Array, sizes: tuple[int, int, int]):
        self.start = (0, row, 0, image)
        self.sizes = sizes  # rows, width, images

    def read(self, x: jax.Array, more: int = 0) -> jax.Array:
        """[C, rows, columns, images], with `more` rows and columns."""
        rows, width, images = self.sizes
        return jax.lax.dynamic_slice(x, self.start, (len(x), rows + more, width + more, images))

    def write(self, y: jax.Array, values: jax.Array) -> jax.Array:
        """Puts values [F, pixels]."""
        return jax.lax.dynamic_update_slice(y, values.reshape(-1, *self.sizes), self.start)


def _over_tiles(
    step: Callable[[Any, jax.Array, _Tile], Any], carry: Any, x: jax.Array, size: int, padding: int
) -> Any:
    """`step(carry, columns, tile)` for all tiles of the result of a convolution of `x`."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    channels, height, width, n_images = x.shape
    height, width = height - size + 1, width - size + 1
    divisors = [n for n in range(1, min(_IMAGES, n_images) + 1) if n_images % n == 0]
    images = divisors[-1] if divisors[-1] >= _IMAGES // 4 else n_images
    row_bytes = x.dtype.itemsize * size**2 * channels * width * images
    most = max(1, _CACHE // row_bytes)
    rows = next(n for n in range(min(most, height), 0, -1) if height % n == 0)
    per_row = n_images // images

    def body(i, carry):
        tile = _Tile(i // per_row * rows, i % per_row * images, (rows, width, images))
        columns = shifted(tile.read(x, size - 1), size)
        return step(carry, columns.reshape(len(columns), -1), tile)

    return jax.lax.fori_loop(0, height // rows * per_row, body, carry)


def _sides(x: jax.Array, kernel: jax.Array, padding: int) -> tuple[int, int]:
    height, width = (side + 2 * padding - len(kernel) + 1 for side in x.shape[1:3])
    return height, width
