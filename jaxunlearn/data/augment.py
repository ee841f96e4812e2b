"""Augmentations of batches of images, pure functions for use inside a compiled loop.

Each takes `(key, images)` first, with images [B, H, W, C] of uint8 or floats, and returns images of
the same shape and type (`normalise` takes no key and returns float32). Every image of a batch is
changed on its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.pixels import as_float as as_float

_CHUNK = 1024  # images whose statistics are taken at once


def flip(key: Key, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2."""
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def translate(key: Key, images: jax.Array, pixels: int) -> jax.Array:
    """Shifts each image, up to `pixels` >= 0 each way and on each axis, uniformly; zeros move in.

    The same as padding with zeros on all sides and cropping at random.
    """
    checks.at_least("pixels", pixels, 0)
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    # Faster on a CPU than gathering rows and columns, selecting among shifts, or one-hot products.
    crop = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), images.shape[1:])  # noqa: E731
    return jax.vmap(crop)(padded, corners)


def cutout(key: Key, images: jax.Array, size: int) -> jax.Array:
    """Sets a square of each image to 0, of `size` >= 1 pixels on each side.

    Its centre is uniform over the pixels, so that a part of it may lie outside; it covers the rows
    `centre - size // 2` to `centre - size // 2 + size - 1`, and the columns likewise.
    """
    checks.at_least("size", size, 1)
    height, width = images.shape[1:3]
    centres = jax.random.randint(key, (len(images), 2), 0, jnp.array([height, width]))
    first = centres - size // 2
    rows, columns = (
        (jnp.arange(n) >= start[:, None]) & (jnp.arange(n) < start[:, None] + size)
        for n, start in ((height, first[:, 0]), (width, first[:, 1]))
    )
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def rotations(angles: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Matrices [B, 2, 3] for `affine` that turn images of `size` (height, width) about the centre.

    The angles [B] are in radians; a positive one turns the picture anticlockwise.
    """
    x, y = _centre(size)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return _matrices([[cos, -sin, x - x * cos + y * sin], [sin, cos, y - x * sin - y * cos]])


def zooms(factors: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Matrices [B, 2, 3] for `affine` that scale images of `size` (height, width) about the centre.

    The factors [B, 2] are those of height and width; above 1 the picture becomes smaller.
    """
    x, y = _centre(size)
    down, right = factors[:, 0], factors[:, 1]
    return _matrices([[right, 0, x * (1 - right)], [0, down, y * (1 - down)]])


def translations(shifts: jax.Array) -> jax.Array:
    """Matrices [B, 2, 3] for `affine` that move pictures by [B, 2] pixels down and to the right."""
    return _matrices([[1, 0, -shifts[:, 1]], [0, 1, -shifts[:, 0]]])


def affine(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Reads each image at transformed places, bilinearly; beyond its edges it is reflected.

    Pixel (x, y) of the result, column and row, is the image at `matrix @ (x, y, 1)`. The edge's own
    row is repeated by the reflection: d c b a | a b c d | d c b a.

    Args:
        images: [B, H, W, C]; floats, or uint8, which is rounded.
        matrices: [B, 2, 3], of `rotations`, `zooms`, `translations`, or products of them.

    Raises:
        ValueError: matrices of another shape.
    """
    if matrices.shape != (len(images), 2, 3):
        raise ValueError(
            f"matrices is {list(matrices.shape)}; [{len(images)}, 2, 3] fits the images"
        )
    n, height, width, channels = images.shape
    y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
    entries = matrices[..., None, None]  # [B, 2, 3, 1, 1]
    of_x, of_y = (entries[:, i, 0] * x + entries[:, i, 1] * y + entries[:, i, 2] for i in (0, 1))
    pixels = images.reshape(n, height * width, channels)
    read = 0.0
    for row, share_of_row in _neighbours(of_y, height):
        for column, share in _neighbours(of_x, width):
            at = (row * width + column).reshape(n, height * width, 1)
            pixel = jnp.take_along_axis(pixels, at, axis=1, mode="promise_in_bounds")
            read = read + (share_of_row * share)[..., None] * pixel.reshape(images.shape)
    if jnp.issubdtype(images.dtype, jnp.integer):
        read = jax.lax.round(read)
    return jnp.asarray(read, images.dtype)


def _neighbours(places: jax.Array, side: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Both pixels around each place on an axis of `side` pixels, reflected, and their shares.

    `jax.scipy.ndimage.map_coordinates` reads the same with remainders of integers, which are slow
    on a CPU.
    """
    first = jnp.floor(places)
    share = places - first

    def inside(i: jax.Array) -> jax.Array:
        i = i - 2 * side * jnp.floor(i / (2 * side))
        # XLA's quotient is a product, of whole periods a little less: 2 side stands for 0 then.
        return jnp.maximum(jnp.minimum(i, 2 * side - 1 - i), 0).astype(jnp.int32)

    return (inside(first), 1 - share), (inside(first + 1), share)


def warp(
    key: Key,
    images: jax.Array,
    rotation: float | jax.Array = 0.1,
    zoom: float | jax.Array = 0.2,
    translation: float | jax.Array = 0.2,
    brightness: float | jax.Array = 0.0,
    sequential: bool = False,
) -> jax.Array:
    """Turns, scales, moves and brightens each image at random, all uniformly.

    The defaults are those of arXiv 2501.15547, whose code has the brightness switched off.

    Args:
        key: the draws' key.
        images: [B, H, W, C], floats in [0, 1].
        rotation: the largest angle, as a part of a full turn.
        zoom: how far the factors of height and of width, drawn apart, lie from 1 at most.
        translation: the largest shift, as a part of height and width.
        brightness: what is added to all pixels at most; the result is clipped to [0, 1].
        sequential: interpolate three times, one after the other, as Keras' layers do, and not once
            with the product of the three matrices, which is faster and blurs less.

    Raises:
        ValueError: images of integers, a negative amount, or a zoom of 1, which leaves nothing.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; floats in [0, 1] are needed")
    wanted = _wanted(rotation=rotation, zoom=zoom, translation=translation, brightness=brightness)

    def draw(purpose: str, most: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
        shape = (len(images), *shape)
        return jax.random.uniform(fold(key, purpose), shape, minval=-most, maxval=most)

    size = images.shape[1:3]
    steps = []  # what is not asked for costs nothing
    if "rotation" in wanted:
        steps.append(rotations(draw("rotation", 2 * jnp.pi * rotation, ()), size))
    if "zoom" in wanted:
        steps.append(zooms(1 + draw("zoom", zoom, (2,)), size))
    if "translation" in wanted:
        shifts = draw("translation", translation, (2,)) * jnp.array(size, jnp.float32)
        steps.append(translations(shifts))
    if steps and not sequential:
        steps = [functools.reduce(_product, steps)]
    for matrices in steps:
        images = affine(images, matrices)
    if "brightness" not in wanted:
        return images
    added = draw("brightness", brightness, (1, 1, 1)).astype(images.dtype)
    return jnp.clip(images + added, 0, 1)


def _wanted(**amounts: float | jax.Array) -> set[str]:
    """The changes of `warp` whose amount is traced or above 0; raises for one out of its range."""
    known = {name: value for name, value in amounts.items() if not isinstance(value, Tracer)}
    for name, value in known.items():
        checks.at_least(name, value, 0, below=1 if name == "zoom" else math.inf)
    return {name for name in amounts if name not in known or known[name]}


def _centre(size: tuple[int, ...]) -> tuple[float, float]:
    return (size[1] - 1) / 2, (size[0] - 1) / 2


def _matrices(rows: list[list[Any]]) -> jax.Array:
    entries = (jnp.asarray(entry, jnp.float32) for row in rows for entry in row)
    return jnp.stack(jnp.broadcast_arrays(*entries), axis=-1).reshape(-1, 2, 3)


def _product(first: jax.Array, then: jax.Array) -> jax.Array:
    """The matrix that reads as `affine` by `then` after `affine` by `first`, [B, 2, 3]."""
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (len(then), 1, 3))
    return first @ jnp.concatenate([then, last], axis=1)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images - mean) / std` by channel, in float32; uint8 is scaled to [0, 1] first.

    Images are [..., C], mean and std [C] in units of [0, 1]; see `channel_statistics`.
    """
    scaled = as_float(images).astype(jnp.float32)
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for `normalise`.

    Images are [n, H, W, C], uint8 (scaled to [0, 1]) or floats. The two tuples of C floats are
    accumulated in float64, and hashable, so that a compiled function may close over them. For a
    channel that is the same everywhere, such as an opaque alpha, 1 stands for the deviation 0.
    """
    scale = 255 if images.dtype == np.uint8 else 1
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    count = images.size // images.shape[-1]
    mean = np.sum([chunk.sum((0, 1, 2), np.float64) for chunk in chunks], 0) / count
    squares = np.sum([((chunk - mean) ** 2).sum((0, 1, 2)) for chunk in chunks], 0)
    deviations = np.sqrt(squares / count) / scale
    deviations = np.where(deviations > 1e-9, deviations, 1.0)  # above the rounding of a mean
    return tuple((mean / scale).tolist()), tuple(deviations.tolist())


def compose(*steps: Callable[[Key, jax.Array], jax.Array]) -> "Composition":
    """One augmentation of several, e.g. `compose(flip, functools.partial(translate, pixels=2))`.

    Step i draws from `fold(key, i)`. Compositions of equal steps are equal and hash alike, which
    `functools.partial` does not, so that a loop that is given one is compiled once.
    """
    return Composition(tuple(map(_step, steps)))


@dataclasses.dataclass(frozen=True)
class Composition:
    """What `compose` makes: `composition(key, images) -> images`."""

    steps: tuple[tuple[Callable[..., jax.Array], tuple[tuple[str, Any], ...]], ...]

    def __call__(self, key: Key, images: jax.Array) -> jax.Array:
        """Applies the steps in order."""
        for i, (step, keywords) in enumerate(self.steps):
            images = step(fold(key, i), images, **dict(keywords))
        return images


def _step(step: Callable) -> tuple[Callable, tuple[tuple[str, Any], ...]]:
    """A function and the keywords of a `functools.partial`, compared by value."""
    if isinstance(step, functools.partial) and not step.args:
        return step.func, tuple(sorted(step.keywords.items()))
    return step, ()
