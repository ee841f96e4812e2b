"""Blur: defocus, frosted glass, motion, zoom and Gaussian blur."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data.corruptions import _planes
from jaxunlearn.data.corruptions._planes import WHITE, drawn, filtered, levels, settled, uniform


def gaussian_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """A Gaussian filter; the edge goes on outside.

    It adds its differences to the pixel, [H, H] along each axis: where those are small, float32
    keeps more of them than of the sum.
    """
    down = jnp.einsum("ih,nhwc->niwc", made["differences"], x, precision="highest")
    right = jnp.einsum("jw,niwc->nijc", made["differences"], x + down, precision="highest")
    return settled(x, down + right, made["flat"], made["near"])


def defocus_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Correlation with a disk; outside, the image is mirrored.

    The mean of a disk is often a whole level, so that the tiny weights around it decide where the
    fraction is cut. The sum of whole levels with `coarse` weights, multiples of 2^-14, is exact in
    float32, and that with what is left of the weights is small.
    """
    n, size, _, channels = x.shape
    width = made["coarse"].shape[1]
    half = width // 2
    at = jnp.arange(-half, size + half, dtype=jnp.float32)
    at = _planes.mirrored(at, size).astype(jnp.int32)
    padded = x[:, at][:, :, at].reshape(n, size + 2 * half, -1)

    def add_row(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows = jax.lax.dynamic_slice_in_dim(padded, i, size, axis=1)
        for j in range(width):
            moved = rows[:, :, channels * j : channels * (j + size)]
            sums = sums[0] + made["coarse"][i, j] * moved, sums[1] + made["rest"][i, j] * moved
        return sums

    zero = jnp.zeros((n, size, size * channels))
    coarse, rest = jax.lax.fori_loop(made["first"], made["end"], add_row, (zero, zero))
    whole = jnp.floor(coarse)
    return (whole + jnp.floor(coarse - whole + rest + made["whole"])).reshape(x.shape)


def zoom_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """The mean of the image and of enlargements of its middle."""

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + made["shares"][i] * filtered(x, made["zooms"][i])

    total = jax.lax.fori_loop(0, made["n"], add, x)
    mean = total / (1 + made["shares"].sum())
    return settled(jnp.zeros_like(x), mean, made["flat"], 2.0**-14)


def motion_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Shifted copies along an angle of -45 to 45 degrees."""
    quarter = jnp.pi / 4
    angles = drawn(keys, lambda key: jax.random.uniform(key, (), minval=-quarter, maxval=quarter))
    return _planes.moved(x, made["weights"], angles)


def glass_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """A Gaussian filter, pixels that read a neighbour, and the filter again.

    The published loop, from the last pixel to the first, gives each the value of a neighbour (its
    exchange of two views copies one into the other). See `_sources` for what comes of it.
    """

    def exchange(i: jax.Array, x: jax.Array) -> jax.Array:
        rows, columns = jax.vmap(
            lambda key: _neighbours(fold(key, i), x.shape[1], made["distance"])
        )(keys)
        at = _sources(rows, columns, made["distance"])
        return _planes.read(x, at // x.shape[2], at % x.shape[2])

    x = levels(filtered(x, made["filter"]))
    return filtered(jax.lax.fori_loop(0, made["rounds"], exchange, x), made["filter"])


def _neighbours(key: Key, size: int, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pixel that each pixel of an image reads, rows and columns, int32 [size, size].

    Both lie -distance to distance - 1 away; a frame of pixels reads itself.
    """
    u = uniform(key, (2, size, size))
    offsets = jnp.floor(u * 2 * distance).astype(jnp.int32) - distance
    place = jnp.mgrid[:size, :size]
    return tuple(place + jnp.where(_is_visited(place, size, distance), offsets, 0))


def _is_visited(place: jax.Array, size: int, distance: jax.Array) -> jax.Array:
    """Whether the loop comes by a pixel: it runs from `size - distance` down to `distance + 1`."""
    inside = (place > distance) & (place <= size - distance)
    return inside[0] & inside[1]


def _sources(rows: jax.Array, columns: jax.Array, distance: jax.Array) -> jax.Array:
    """Which pixel's first value each one ends with, int32 [N, H, W], numbered row by row.

    A pixel that reads one the loop has come by, which is further on in the picture, gets what that
    one has read. Such chains only go forward; each round doubles how far they have been followed.
    """
    n, height, width = rows.shape
    number = jnp.arange(height * width)
    at = (rows * width + columns).reshape(n, -1)
    visited = _is_visited(jnp.mgrid[:height, :width], height, distance).reshape(-1)
    is_open = visited & (at > number) & visited[at]

    def follow(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at, is_open = state
        onward = jnp.take_along_axis(at, at, axis=1, mode="promise_in_bounds")
        goes_on = jnp.take_along_axis(is_open, at, axis=1, mode="promise_in_bounds")
        return jnp.where(is_open, onward, at), is_open & goes_on

    at, _ = jax.lax.while_loop(lambda state: state[1].any(), follow, (at, is_open))
    return at.reshape(rows.shape)


def gaussian_filter(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `gaussian_blur`."""
    from scipy.ndimage import gaussian_filter1d

    flat = np.arange(256)[:, None, None] / WHITE
    for axis in (1, 2):
        flat = gaussian_filter1d(flat, c[0], axis, mode="nearest")
    differences = _planes.gaussian(size, c[0]) - np.eye(size)
    near = 2.0**-13 * (1 - (1 + differences[size // 2, size // 2]) ** 2) ** 2  # float32's error
    return {"differences": differences, "flat": _cut(flat).reshape(-1), "near": near}


def _cut(x: np.ndarray) -> np.ndarray:
    """Images in [0, 1] to levels, as the published code does."""
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def glass(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `glass_blur`; distance and rounds are rounded between severities."""
    rounded = {"distance": np.int32(round(c[1])), "rounds": np.int32(round(c[2]))}
    return {"filter": _planes.gaussian(size, c[0])} | rounded


def motion(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `motion_blur`."""
    return {"weights": _planes.motion_weights(c[0], c[1], most[0])}


def zooms(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `zoom_blur`; between severities the last zoom counts in part."""
    shares = np.clip(c[0] - np.arange(most[0]), 0, 1)
    step = (1 + c[1]) - 1  # as `numpy.arange(1, end, step)` counts; 1.25 and the next float differ
    matrices = [_planes.zoom(size, 1 + i * step) for i in range(len(shares))]
    flat = np.arange(256, dtype=np.float32) / np.float32(WHITE)
    total = sum((np.float32(share) * flat for share in shares), np.zeros_like(flat))
    flat = _cut((flat + total) / np.float32(shares.sum() + 1))
    n = np.int32((shares > 0).sum())
    return {"zooms": np.stack(matrices), "shares": shares, "n": n, "flat": flat}


def disk(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `defocus_blur`: the disk [K, K] in two parts, and its rows that are not 0.

    `whole` is added before the cut: what sums to a whole level is lowered by one where the weights,
    which the published code keeps in float32, sum to less than 1.
    """
    half = min(int(most[0]) + 1, _grid(most[0]))
    kernel = _disk(c[0], c[1], half).astype(np.float64)
    coarse = np.round(kernel * 2**14) / 2**14
    rows = np.flatnonzero(kernel.any(axis=1))
    return {
        "coarse": coarse,
        "rest": kernel - coarse,
        "first": np.int32(rows[0]),
        "end": np.int32(rows[-1] + 1),
        "whole": np.copysign(2.0**-22, kernel.sum() - 1),
    }


def _disk(radius: float, sigma: float, half: int) -> np.ndarray:
    """The disk as published, float32, in the middle of a kernel [2 half + 1, 2 half + 1].

    It is 1 up to the radius, scaled to sum 1, on a grid of 17 pixels a side or, above a radius of
    8, just large enough; and smoothed by 3x3 weights or, above 8, 5x5.
    """
    grid = _grid(radius)
    offsets = np.arange(-grid, grid + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    width = np.arange(3) - 1 if radius <= 8 else np.arange(5) - 2
    weights = np.exp(-0.5 * (width / sigma) ** 2)
    disk = _smoothed(disk, (weights / weights.sum()).astype(np.float32))
    if grid >= half:
        return disk[grid - half : grid + half + 1, grid - half : grid + half + 1]
    return np.pad(disk, half - grid)


def _smoothed(disk: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rows and columns filtered in float32, rounded where OpenCV rounds; the edge is mirrored."""
    half = len(weights) // 2
    padded = np.pad(disk, half, mode="reflect").astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=1)
    rows = (windows @ weights.astype(np.float64)).astype(np.float32)
    n = len(disk)
    total = weights[half] * rows[half : half + n]
    for i in range(1, half + 1):
        pair = rows[half - i : half - i + n] + rows[half + i : half + i + n]
        total = (np.float64(weights[half + i]) * pair + total).astype(np.float32)
    return total


def _grid(radius: float) -> int:
    return 8 if radius <= 8 else int(np.ceil(radius))
