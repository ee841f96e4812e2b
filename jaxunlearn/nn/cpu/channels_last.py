"""Convolutions of images [B, H, W, C] on a CPU, as lowerings of what XLA does badly there.

(Figures: one core of a 2-core CPU, GFLOP/s counted as for the plain algorithm.)

- the weight gradient, 20 outside and 1 inside a `scan`, becomes shifted matrix products over a few
  images at a time, which stay in the cache: 40 to 60;
- the input gradient, 14 where XLA keeps the kernel's layout, becomes a convolution of its own with
  the flipped kernel, one for each phase of the stride: 65;
- a 3x3 convolution of stride 1 and enough channels, and its gradients, go through Winograd's
  minimal filtering (see `winograd`), a few images at a time too: 70 to 120, where XLA's forward
  has 65;
- a 1x1 convolution with a stride becomes a matrix product: 160 where XLA's has 70 (both cores);
- a grouped one becomes one for each group: 75 to 120, its gradients 35 to 90 where XLA's, inside a
  `scan`, have 1 to 2 (both cores);
- one of few channels becomes a product with all shifts side by side: XLA takes another convolution
  there, whose bits depend on the number of threads; from 16 on, one of pairs of neighbours.

The price: derivatives are reverse-mode only.
"""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn.core import mesh
from jaxunlearn.nn.cpu import winograd
from jaxunlearn.nn.layers.lowering import lax_conv

_CHUNK_SIZE = 2**17  # numbers of input and output that are multiplied at once, to fit the cache
# Below it XLA's convolution is another one, slower, and rounds differently on other devices.
_FEW_CHANNELS = 32
_WINOGRAD_CHANNELS = 32 * 64  # channels in times channels out from which its transforms pay


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """As `nn.conv`, whose checks it relies on."""
    return _correlate(x, kernel, stride, ((padding, padding), (padding, padding)))


def grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """A convolution within each of the groups of channels."""
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([conv(*part, stride, padding) for part in parts], axis=-1)


def _backward(stride, padding, residuals, g):
    x, kernel = residuals
    return (
        _input_gradient(g, kernel, stride, padding, x.shape[1:3]),
        _kernel_gradient(x, g, kernel.shape[0], stride, padding),
    )


conv.defvjp(lambda *inputs: (conv(*inputs), inputs[:2]), _backward)


def _correlate(x, kernel, stride, padding):
    """A convolution with the padding of each side; Winograd's where it is faster."""
    if kernel.shape[:2] == (1, 1):
        return _pad(x, padding)[:, ::stride, ::stride] @ kernel[0, 0]
    if _is_winograd(kernel.shape, stride):
        return _winograd(_pad(x, padding), kernel)
    if _is_in_pairs(kernel.shape, stride):
        return _in_pairs(x, kernel, padding)
    if max(kernel.shape[2:]) < _FEW_CHANNELS:
        columns = _columns(_pad(x, padding), kernel.shape[:2], stride)
        return columns @ kernel.reshape(-1, kernel.shape[3])
    return lax_conv(x, kernel, stride, padding)


def _is_winograd(shape, stride):
    height, width, n_in, n_out = shape  # a phase of a 5x5 kernel may be 3x2
    return height == width == 3 and stride == 1 and n_in * n_out >= _WINOGRAD_CHANNELS


def _is_in_pairs(shape, stride):
    return _FEW_CHANNELS // 2 <= max(shape[2:]) < _FEW_CHANNELS and stride == 1


def _winograd(x, kernel):
    kernels = winograd.transformed(kernel)
    chunks = _chunks(x, x[0, ..., 0].size * sum(kernel.shape[2:]))
    y = jax.lax.map(jax.vmap(lambda x: winograd.conv(x, kernels)), chunks)
    return jnp.moveaxis(y, 0, 1).reshape(len(x), *y.shape[3:])


def _in_pairs(x, kernel, padding):
    """A convolution of stride 1 on pairs of neighbours in a row, as pixels of twice the channels.

    Two pixels side by side read k + 1 columns, (k + 2) // 2 pairs: a third more products for k = 3.
    """
    height, width, n_in, n_out = kernel.shape
    n_pairs = (width + 2) // 2
    n_columns = x.shape[2] + sum(padding[1]) - width + 1
    n_out_pairs = (n_columns + 1) // 2
    more = 2 * (n_out_pairs + n_pairs - 1) - (x.shape[2] + sum(padding[1]))
    x = _pad(x, (padding[0], (padding[1][0], padding[1][1] + more)))
    x = x.reshape(*x.shape[:2], -1, 2 * n_in)
    shifted = [
        jnp.pad(kernel, ((0, 0), (i, 2 * n_pairs - width - i), (0, 0), (0, 0))) for i in range(2)
    ]
    pairs = jnp.stack(shifted, axis=3).reshape(height, n_pairs, 2 * n_in, 2 * n_out)
    y = lax_conv(x, pairs, 1, ((0, 0), (0, 0)))
    return y.reshape(*y.shape[:2], -1, n_out)[:, :, :n_columns]


def _columns(x, size, stride):
    """All inputs of each output pixel side by side: [B, H, W, C] -> [B, H', W', k k' C]."""
    for axis in (2, 1):
        n = (x.shape[axis] - size[axis - 1]) // stride + 1
        shifted = [
            jax.lax.slice_in_dim(x, i, i + (n - 1) * stride + 1, stride, axis)
            for i in range(size[axis - 1])
        ]
        # Fused into one copy, both axes would be gathered number by number.
        x = jax.lax.optimization_barrier(jnp.concatenate(shifted, axis=-1))
    return x


def _input_gradient(g, kernel, stride, padding, shape):
    """The transposed convolution, as one plain convolution for each phase of the stride.

    Row r = stride * q + a of the input meets taps i = first + stride * t of the kernel, where first
    = (a + padding) mod stride, in output row q + (a + padding - first) / stride - t.
    """
    size = kernel.shape[0]

    def phase(offset, length, n_out):
        first = (offset + padding) % stride
        n_taps = len(range(first, size, stride))
        count = len(range(offset, length, stride))
        before = n_taps - 1 - (offset + padding - first) // stride
        return first, n_taps, count, (before, count + n_taps - 1 - n_out - before)

    rows = [phase(a, shape[0], g.shape[1]) for a in range(min(stride, shape[0]))]
    columns = [phase(a, shape[1], g.shape[2]) for a in range(min(stride, shape[1]))]
    # A kernel in plain layout, which XLA would else fold into the convolution and lose its speed.
    flipped = jax.lax.optimization_barrier(jnp.swapaxes(kernel, 2, 3))
    dx = jnp.zeros((g.shape[0], *shape, kernel.shape[2]), g.dtype) if stride > 1 else None
    for a, (first_row, n_rows, height, pad_rows) in enumerate(rows):
        for b, (first_column, n_columns, width, pad_columns) in enumerate(columns):
            if n_rows == 0 or n_columns == 0:
                continue
            taps = flipped[first_row::stride, first_column::stride][::-1, ::-1]
            part = _correlate(g, taps, 1, (pad_rows, pad_columns))
            if dx is None:
                return part
            dx = dx.at[:, a : a + stride * height : stride, b : b + stride * width : stride].set(
                part
            )
    return dx


def _kernel_gradient(x, g, size, stride, padding):
    """Products of inputs and output gradients, summed over chunks of images."""
    x = _pad(x, ((padding, padding), (padding, padding)))
    n_in, n_out = x.shape[-1], g.shape[-1]
    if _is_winograd((size, size, n_in, n_out), stride):
        return winograd.transformed_back(_sum_over_chunks(winograd.products, x, g))
    if _is_in_pairs((size, size, n_in, n_out), stride):
        return _kernel_gradient_in_pairs(x, g, size)
    products = functools.partial(_shifted_products, size=(size, size), stride=stride)
    return _sum_over_chunks(products, x, g).reshape(size, size, n_in, n_out)


def _kernel_gradient_in_pairs(x, g, size):
    """That of the kernel of pairs (see `_in_pairs`), whose copies of each tap are added up."""
    n_in, n_out, n_pairs = x.shape[-1], g.shape[-1], (size + 2) // 2
    g = _pad(g, ((0, 0), (0, g.shape[2] % 2)))
    x = _pad(x, ((0, 0), (0, g.shape[2] + 2 * n_pairs - 2 - x.shape[2])))
    x, g = (a.reshape(*a.shape[:2], -1, 2 * a.shape[-1]) for a in (x, g))
    products = functools.partial(_shifted_products, size=(size, n_pairs), stride=1)
    sums = _sum_over_chunks(products, x, g).reshape(size, 2 * n_pairs, n_in, 2, n_out)
    return sum(sums[:, i : i + size, :, i] for i in range(2))


def _shifted_products(x, g, size, stride):
    """The gradient of each tap is a matrix product of the inputs it met: [k k', C, F]."""
    _, height, width, n_out = g.shape
    x = jax.lax.optimization_barrier(x)
    g = g.reshape(-1, n_out)
    down, right = (height - 1) * stride + 1, (width - 1) * stride + 1
    shifted = [
        x[:, i : i + down : stride, j : j + right : stride].reshape(-1, x.shape[-1])
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.stack([part.T @ g for part in shifted])


def _sum_over_chunks(products, x, g):
    # Devices that share the batch each sum up their own images; the sums meet once, at the end.
    size = g[0, ..., 0].size * (x.shape[-1] + g.shape[-1])
    chunks = _chunks(x, size), _chunks(g, size)
    add = lambda sum, chunk: (sum + jax.vmap(products)(*chunk), None)  # noqa: E731
    shape = jax.eval_shape(products, x, g).shape
    zero = jnp.zeros((chunks[0].shape[1], *shape), g.dtype)
    return jax.lax.scan(add, zero, chunks)[0].sum(0)


def _chunks(a, size):
    """Few enough images at a time to fit the cache, of each device: [chunks, devices, n, ...].

    The chunks are the largest that divide a device's images; `size` is the numbers of one image.
    """
    batch = len(a)
    shards = mesh.batch_shards() if batch % mesh.batch_shards() == 0 else 1
    most = max(1, min(_CHUNK_SIZE // size, batch // shards))
    n = max(n for n in range(1, most + 1) if batch // shards % n == 0)
    return jnp.moveaxis(a.reshape(shards, -1, n, *a.shape[1:]), 1, 0)


def _pad(x, padding):
    """Zeros around height and width; negative numbers crop."""
    return jax.lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0))
    )
