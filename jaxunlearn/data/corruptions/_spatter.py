"""Spatter: drops of water or mud, on the host, since edges and distances are no work for a device.

Its steps are OpenCV's, of which distances are exact here and there those of a 5x5 mask.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxunlearn.core.keys import Key
from jaxunlearn.data.corruptions._planes import WHITE

_WATER = np.array([175, 238, 238]) / WHITE  # pale turquoise
_MUD = np.array([63, 42, 20]) / WHITE
_LIGHT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # falls from the upper left
_LOW, _HIGH = 50, 150  # thresholds of the edges


def spatter(images: Any, c: np.ndarray, keys: Key) -> jax.Array:
    """Drops where a smooth random field is high; see `constants` for c.

    Raises:
        ValueError: traced images or keys.
    """
    if isinstance(images, Tracer) or isinstance(keys, Tracer):
        raise ValueError("spatter is made on the host; it cannot be traced, other corruptions can")
    seeds = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (4,)))(keys))
    pairs = zip(np.asarray(images), seeds, strict=True)
    spattered = [_one(image / WHITE, c, np.random.default_rng(seed)) for image, seed in pairs]
    return jax.numpy.asarray(np.uint8(np.clip(spattered, 0, 1) * WHITE))


def _one(image: np.ndarray, c: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One image [H, H, 3] in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    mean, deviation, sigma, threshold, strength, mud = c
    field = rng.normal(mean, deviation, image.shape[:2])
    field = gaussian_filter(field, sigma, mode="nearest")
    field[field < threshold] = 0
    if round(mud):
        cover = gaussian_filter((field > threshold).astype(float), strength, mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return image * (1 - cover) + _MUD * cover
    drops = np.clip(field * WHITE, 0, WHITE).astype(np.uint8)
    light = drops * _relief(drops).astype(float)
    most = light.max()
    return image + strength * _WATER * (light / most if most else light)[..., None]


def _relief(drops: np.ndarray) -> np.ndarray:
    """How far a pixel lies from the edges of drops, lit from the side, uint8 [H, H]."""
    from scipy.ndimage import correlate, distance_transform_edt, uniform_filter

    flat = ~_edges(drops)
    distance = np.full(flat.shape, 20.0)
    if not flat.all():
        distance = np.minimum(np.asarray(distance_transform_edt(flat)), distance)
    distance = _equalised(uniform_filter(distance, 3, mode="mirror").astype(np.uint8))
    lit = np.clip(correlate(distance.astype(float), _LIGHT, mode="mirror"), 0, WHITE)
    return np.round(uniform_filter(lit, 3, mode="mirror")).astype(np.uint8)


def _equalised(levels: np.ndarray) -> np.ndarray:
    """The histogram made even, uint8."""
    count = np.bincount(levels.ravel(), minlength=256)
    lowest = np.flatnonzero(count)[0]
    if count[lowest] == levels.size:
        return levels
    after = np.cumsum(count) - count[lowest]
    even = np.round(np.clip(after * (WHITE / after[-1]), 0, WHITE)).astype(np.uint8)
    return even[levels]


def _edges(levels: np.ndarray) -> np.ndarray:
    """Canny's edges, bool [H, H]: ridges of the gradient that join a high one."""
    from scipy.ndimage import label, sobel

    x, y = (sobel(levels.astype(float), axis, mode="nearest") for axis in (1, 0))
    steep = np.abs(x) + np.abs(y)
    around = np.pad(steep, 1)
    height, width = steep.shape

    def beside(down: int, right: int) -> np.ndarray:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    tangent = np.sqrt(2) - 1  # of 22.5 degrees
    is_level, is_upright = np.abs(y) < tangent * np.abs(x), np.abs(x) < tangent * np.abs(y)
    falls = (x < 0) != (y < 0)
    diagonal = np.where(
        falls,
        (steep > beside(-1, 1)) & (steep > beside(1, -1)),
        (steep > beside(-1, -1)) & (steep > beside(1, 1)),
    )
    level = (steep > beside(0, -1)) & (steep >= beside(0, 1))
    upright = (steep > beside(-1, 0)) & (steep >= beside(1, 0))
    ridge = np.where(is_level, level, np.where(is_upright, upright, diagonal)) & (steep > _LOW)
    parts = np.zeros(ridge.shape, np.int32)
    label(ridge, np.ones((3, 3)), output=parts)
    return np.isin(parts, np.unique(parts[ridge & (steep > _HIGH)])) & ridge
