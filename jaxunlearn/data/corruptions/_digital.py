"""Digital: brightness, contrast, saturation, elastic transform, pixelation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data.corruptions import _planes
from jaxunlearn.data.corruptions._planes import WHITE, bilinear, filtered, uniform

_RED = np.array([1.0, 0.0, 0.0], np.float32)


def brightness(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """More of HSV's value; hue and saturation stay."""
    return _recoloured(x, made)


def saturate(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Another saturation of HSV; value and hue stay. Grey has the hue of red."""
    return _recoloured(x, made)


def _recoloured(x: jax.Array, made: dict) -> jax.Array:
    """Pixels whose highest and lowest channel become `high` and `low`, tables of both, [256, 256].

    The channel between them stays where it is in proportion.
    """
    high, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    at = (high * 256 + low).astype(jnp.int32)
    new_high, new_low = (
        made[name].reshape(-1).at[at].get(mode="promise_in_bounds") for name in ("high", "low")
    )
    spread = high - low
    share = jnp.where(spread > 0, (x - low) / jnp.where(spread > 0, spread, 1), _RED)
    return new_low + share * (new_high - new_low)


def contrast(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Every channel nearer to its mean over the image."""
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * made["kept"] + mean


def elastic_transform(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """A random affine map, then displacements that are smooth over the image."""
    size = x.shape[1]

    def draw(key: Key) -> tuple[jax.Array, jax.Array]:
        shifts = jax.random.uniform(fold(key, "corners"), (3, 2), minval=-1, maxval=1)
        fields = 2 * uniform(fold(key, "fields"), (size, size, 2)) - 1
        return shifts, fields

    shifts, fields = jax.vmap(draw)(keys)
    to_x, to_y = _affine(size, made["shift"] * shifts)
    y, x_ = jnp.mgrid[:size, :size].astype(jnp.float32)
    columns, rows = (a[:, 0] * x_ + a[:, 1] * y + a[:, 2] for a in (to_x, to_y))
    x = bilinear(x, rows, columns, _planes.mirrored)
    fields = made["height"] * filtered(fields, made["filter"])
    return bilinear(x, y + fields[..., 1], x_ + fields[..., 0], _planes.reflected)


def _affine(size: int, shifts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where an affine map reads that moves three corners of a square by `shifts` [N, 3, 2].

    Returns coefficients [N, 3, 1, 1] of (x, y, 1) for x and for y.
    """
    centre, reach = size // 2, size // 3
    corners = jnp.array([[1, 1], [1, -1], [-1, -1]], jnp.float32) * reach + centre
    target = corners + shifts
    # Relative to the last corner the map is linear, and a 2x2 matrix is inverted by hand.
    (a, b), (c, d) = (
        (target[:, i, 0] - target[:, 2, 0], target[:, i, 1] - target[:, 2, 1]) for i in (0, 1)
    )
    determinant = a * d - b * c
    found = []
    for axis in (0, 1):
        first, second = (corners[i, axis] - corners[2, axis] for i in (0, 1))
        of_x, of_y = (first * d - second * b) / determinant, (second * a - first * c) / determinant
        rest = corners[2, axis] - of_x * target[:, 2, 0] - of_y * target[:, 2, 1]
        found.append(jnp.stack([of_x, of_y, rest], 1)[..., None, None])
    return found[0], found[1]


def pixelate(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Means of boxes, along rows and then along columns, rounded each time, as Pillow does."""
    small = jnp.floor(jnp.einsum("jw,nhwc->nhjc", made["box"], x, precision="highest") + 0.5)
    small = jnp.floor(jnp.einsum("ih,nhjc->nijc", made["box"], small, precision="highest") + 0.5)
    return jnp.take(jnp.take(small, made["at"], axis=1), made["at"], axis=2)


def added(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `brightness`."""
    return _extremes(lambda saturation, value: (saturation, np.clip(value + c[0], 0, 1)))


def saturation(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `saturate`."""
    return _extremes(lambda saturation, value: (np.clip(saturation * c[0] + c[1], 0, 1), value))


def _extremes(change: Callable[..., tuple[np.ndarray, np.ndarray]]) -> dict:
    """What a change of HSV's saturation and value makes of the highest and the lowest channel.

    In float64 as published, since whole levels are frequent here and its rounding decides whether
    the cut lowers them.
    """
    value, low = np.mgrid[:256, :256] / WHITE
    low = np.minimum(low, value)
    saturation = (value - low) / np.where(value > 0, value, 1)
    saturation, value = change(saturation, value)
    made = {"high": WHITE * value, "low": WHITE * (value * (1 - saturation))}
    below = 1 - 2.0**-9  # what is a whole level but for float64's rounding stays below it
    return {name: np.minimum(table, np.floor(table) + below) for name, table in made.items()}


def kept(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `contrast`."""
    return {"kept": c[0]}


def displacement(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `elastic_transform`."""
    height, sigma, shift = size * c
    smooth = _planes.gaussian(size, sigma, truncate=3, edge="reflect")
    return {"height": height, "filter": smooth, "shift": shift}


def boxes(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `pixelate`: the means [size, size] of boxes, and the box of each pixel [size].

    A box has the pixels whose centres lie in it; rows that are too many are 0.
    """
    small = max(int(size * c[0]), 1)
    scale = size / small
    matrix = np.zeros((size, size))
    for i in range(small):
        centre = (i + 0.5) * scale
        first, last = (int(max(centre + half + 0.5, 0)) for half in (-scale / 2, scale / 2))
        place = np.arange(first, min(last, size)) - centre + 0.5
        inside = first + np.flatnonzero((place / scale > -0.5) & (place / scale <= 0.5))
        matrix[i, inside] = 1 / len(inside)
    at = np.minimum((np.arange(size) + 0.5) * small / size, small - 1).astype(np.int32)
    return {"box": matrix, "at": at}
