"""Convolutions of narrow networks, with the batch as the last axis: [C, H, W, B].

With a few channels per pixel the usual layout leaves a CPU's vectors half empty, and its copies of
shifted pixels are many short ones. With the batch innermost both run over whole batches: a training
step of two small convolutions takes a quarter of the time (2-core CPU, batch 32).
"""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn.nn.cpu import conv_pool, tiles
from jaxunlearn.nn.layers.lowering import is_plain, lax_conv

_LEAST = 8  # images that fill a vector; fewer are left to XLA
_MOST = 16_000_000  # bytes of shifted pixels at once


def enter(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [C, H, W, B]."""
    return jnp.transpose(x, (3, 1, 2, 0))


leave = enter  # [C, H, W, B] -> [B, H, W, C]


def conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """A convolution of stride 1.

    Args:
        x: [C, H, W, B].
        kernel: [k, k, C, F].
        padding: zeros on each side.

    Returns:
        [F, H + 2 padding - k + 1, W + 2 padding - k + 1, B].
    """
    x, kernel = _alike(x, kernel)
    size = kernel.shape[0]
    if is_plain(x) or x.shape[-1] < _LEAST:
        return lax_conv(x, kernel, 1, ((padding, padding),) * 2, "CHWN")
    if tiles.n_bytes(x, kernel, padding) > _MOST:
        return tiles.conv(x, kernel, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    columns = tiles.shifted(x, size)
    y = kernel.reshape(-1, kernel.shape[-1]).T @ columns.reshape(len(columns), -1)
    return y.reshape(-1, *columns.shape[1:])


def conv_max_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`max_pool(conv(x, kernel))`, as one where that is faster."""
    x, kernel = _alike(x, kernel)
    apart = is_plain(x) or x.shape[-1] < _LEAST or len(kernel) % 2 == 0
    if apart or tiles.n_bytes(x, kernel, 0) > _MOST:
        return max_pool(conv(x, kernel))
    return conv_pool.conv_max_pool(x, kernel)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of each channel on its own, of stride 1, that keeps height and width.

    Args:
        x: [C, H, W, B].
        kernel: [k, k, C], k odd.
    """
    x, kernel = _alike(x, kernel)
    if is_plain(x, depthwise=True):
        return lax_conv(x, kernel[:, :, None], 1, "SAME", "CHWN", groups=len(x))
    return _depthwise(x, kernel)


def _alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """In one type, as all of JAX but its convolutions promotes them."""
    kind = jnp.promote_types(x.dtype, kernel.dtype)
    return x.astype(kind), kernel.astype(kind)


def _shifted(x: jax.Array, size: int) -> list[jax.Array]:
    """x [..., H, W, B] at each tap of a kernel, which keeps height and width."""
    height, width = x.shape[-3:-1]
    edges = ((size // 2, size // 2),) * 2
    # Without the copy every tap would ask again whether it lies inside.
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0),) * (x.ndim - 3) + (*edges, (0, 0))))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return [x[..., i : i + height, j : j + width, :] for i, j in shifts]


def _by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    taps = kernel.reshape(-1, len(x), 1, 1, 1)
    products = (tap * pixels for tap, pixels in zip(taps, _shifted(x, len(kernel)), strict=True))
    return functools.reduce(jnp.add, products)


_depthwise = jax.custom_vjp(_by_taps)


def _depthwise_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def of_channel(both: tuple[jax.Array, jax.Array]) -> jax.Array:
        """[taps, B] of one channel, which fits a cache."""
        x, g = both
        # Products first, then sums over leading axes: XLA makes no vectors of it otherwise.
        products = [jax.lax.optimization_barrier(pixels * g) for pixels in _shifted(x, len(kernel))]
        return jnp.stack([product.sum((0, 1)) for product in products])

    dkernel = jax.lax.map(of_channel, (x, g)).sum(-1).T.reshape(kernel.shape)
    return _by_taps(g, kernel[::-1, ::-1]), dkernel


_depthwise.defvjp(lambda x, kernel: (_by_taps(x, kernel), (x, kernel)), _depthwise_backward)


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped: [C, H, W, B].

    Equal maxima share the gradient.
    """
    if not is_plain(x):
        return _max_pool(x)
    channels, height, width, batch = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(channels, height // 2, 2, width // 2, 2, batch).max(axis=(2, 4))


def _largest(x: jax.Array) -> jax.Array:
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return functools.reduce(jnp.maximum, corners)


_max_pool = jax.custom_vjp(_largest)


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _largest(x)
    return y, (x, y)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    # Sums over windows, and JAX's own gradient, take ten times as long as whole arrays do.
    x, y = residuals
    height, width = (side * 2 for side in y.shape[1:3])
    is_largest = x[:, :height, :width] == _doubled(y)
    corners = [is_largest[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    n_largest = functools.reduce(jnp.add, [corner.astype(g.dtype) for corner in corners])
    g = jax.lax.optimization_barrier(g / n_largest)
    dx = jnp.where(is_largest, _doubled(g), 0)
    odd = ((0, 0), (0, x.shape[1] - height), (0, x.shape[2] - width), (0, 0))
    return (jnp.pad(dx, odd),)


def _doubled(y: jax.Array) -> jax.Array:
    """Each pixel as a window of 2 x 2."""
    return jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)


_max_pool.defvjp(_forward, _backward)
