"""Augmentations of batches of images, pure functions for use inside a compiled loop.

Each takes `(key, images)` first, with images [B, H, W, C] of uint8 or floats, and returns images of
the same shape and type (`normalise` takes no key and returns float32). Every image of a batch is
changed on its own.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold

_CHUNK = 1024  # images whose statistics are taken at once


def flip(key: Key, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2."""
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def translate(key: Key, images: jax.Array, pixels: int) -> jax.Array:
    """Shifts each image, up to `pixels` each way and on each axis, uniformly; zeros move in.

    The same as padding with zeros on all sides and cropping at random.

    Args:
        key: of the draw.
        images: [B, H, W, C].
        pixels: the largest shift, at least 0.
    """
    if pixels < 0:
        raise ValueError(f"pixels is {pixels}; at least 0 is allowed")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    # Faster on a CPU than gathering rows and columns, selecting among shifts, or one-hot products.
    crop = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), images.shape[1:])  # noqa: E731
    return jax.vmap(crop)(padded, corners)


def cutout(key: Key, images: jax.Array, size: int) -> jax.Array:
    """Sets a square of each image to 0.

    Its centre is uniform over the pixels, so that a part of it may lie outside; it covers the rows
    `centre - size // 2` to `centre - size // 2 + size - 1`, and the columns likewise.

    Args:
        key: of the draw.
        images: [B, H, W, C].
        size: edge of the square, at least 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; at least 1 is allowed")
    height, width = images.shape[1:3]
    centres = jax.random.randint(key, (len(images), 2), 0, jnp.array([height, width]))
    first = centres - size // 2
    rows, columns = (
        (jnp.arange(n) >= start[:, None]) & (jnp.arange(n) < start[:, None] + size)
        for n, start in ((height, first[:, 0]), (width, first[:, 1]))
    )
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images - mean) / std` by channel, in float32; uint8 is scaled to [0, 1] first.

    Args:
        images: [..., C].
        mean: [C], in units of [0, 1]; see `channel_statistics`.
        std: [C], likewise.
    """
    scaled = images.astype(jnp.float32)
    scaled = scaled / 255 if images.dtype == jnp.uint8 else scaled
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for `normalise`.

    Args:
        images: [n, H, W, C], uint8 (scaled to [0, 1]) or floats.

    Returns:
        Tuples of C floats, accumulated in float64; hashable, so that a compiled function may close
        over them.
    """
    scale = 255 if images.dtype == np.uint8 else 1
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    count = images.size // images.shape[-1]
    mean = np.sum([chunk.sum((0, 1, 2), np.float64) for chunk in chunks], 0) / count
    squares = np.sum([((chunk - mean) ** 2).sum((0, 1, 2)) for chunk in chunks], 0)
    return tuple((mean / scale).tolist()), tuple((np.sqrt(squares / count) / scale).tolist())


def compose(*steps: Callable[[Key, jax.Array], jax.Array]) -> "Composition":
    """One augmentation of several, e.g. `compose(flip, functools.partial(translate, pixels=2))`.

    Step i draws from `fold(key, i)`. Compositions of equal steps are equal and hash alike, which
    `functools.partial` does not, so that a loop that is given one is compiled once.
    """
    return Composition(tuple(_Step.of(step) for step in steps))


@dataclasses.dataclass(frozen=True)
class Composition:
    """What `compose` makes: `composition(key, images) -> images`."""

    steps: tuple["_Step", ...]

    def __call__(self, key: Key, images: jax.Array) -> jax.Array:
        """Applies the steps in order."""
        for i, step in enumerate(self.steps):
            images = step.function(fold(key, i), images, **dict(step.keywords))
        return images


@dataclasses.dataclass(frozen=True)
class _Step:
    """A function with the keywords of a `functools.partial`, compared by value."""

    function: Callable[..., jax.Array]
    keywords: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, step: Callable) -> "_Step":
        if isinstance(step, functools.partial) and not step.args:
            return cls(step.func, tuple(sorted(step.keywords.items())))
        return cls(step)
