"""Blur: defocus, frosted glass, motion, zoom and Gaussian blur."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data.corruptions import _planes
from jaxunlearn.data.corruptions._planes import drawn, filtered, levels, separable


def gaussian_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """A Gaussian filter; the edge goes on outside."""
    return filtered(x, made["filter"])


def defocus_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Correlation with a disk, as a sum of filters that work on rows and columns apart."""
    pairs = zip(made["down"], made["right"], strict=True)
    return sum((separable(x, down, right) for down, right in pairs), jnp.zeros(()))


def zoom_blur(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """The mean of the image and of enlargements of its middle."""

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + made["shares"][i] * filtered(x, made["zooms"][i])

    total = jax.lax.fori_loop(0, made["n"], add, x)
    return total / (1 + made["shares"].sum())


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
    u = jax.random.uniform(key, (2, size, size))
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
    return {"filter": _planes.gaussian(size, c[0])}


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
    return {"zooms": np.stack(matrices), "shares": shares, "n": np.int32((shares > 0).sum())}


def disk(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `defocus_blur`: singular vectors of the disk as filters, [R, size, size] twice."""
    kernel = _disk(c[0], c[1], min(int(most[0]) + 1, _grid(most[0])))
    left, scale, right = np.linalg.svd(kernel)
    rank = len(kernel) // 2 + 1  # rows above the middle are those below
    return {
        name: np.stack([_mirror(size, np.sqrt(scale[r]) * vectors[r]) for r in range(rank)])
        for name, vectors in (("down", left.T), ("right", right))
    }


def _mirror(size: int, weights: np.ndarray) -> np.ndarray:
    return _planes.correlation(size, weights, "mirror")


def _disk(radius: float, sigma: float, half: int) -> np.ndarray:
    """The disk as published, in the middle of a kernel [2 half + 1, 2 half + 1].

    It is 1 up to the radius, scaled to sum 1, on a grid of 17 pixels a side or, above a radius of
    8, just large enough; and smoothed by 3x3 weights or, above 8, 5x5.
    """
    grid = _grid(radius)
    offsets = np.arange(-grid, grid + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    width = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    smooth = _mirror(len(offsets), np.exp(-0.5 * (width / sigma) ** 2))
    smooth /= smooth.sum(axis=1, keepdims=True)
    disk = smooth @ (disk / disk.sum()) @ smooth.T
    if grid >= half:
        return disk[grid - half : grid + half + 1, grid - half : grid + half + 1]
    return np.pad(disk, half - grid)


def _grid(radius: float) -> int:
    return 8 if radius <= 8 else int(np.ceil(radius))
