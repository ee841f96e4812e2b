"""What several corruptions share: filters as matrices, bilinear reading, motion, draws by image.

Images are float32 [N, H, W, C] in levels, 0 to 255, so that what does not change stays whole. A
filter that works on rows and columns apart is a pair of matrices [H, H] and [W, W], edges included:
they are made on the host in float64, and a stronger one is no other program.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key

WHITE = 255.0
# Float32 leaves some whole levels a little below themselves; cutting the fraction would lower them.
_ROUNDING = 2.0**-12


def checked_images(images: Any) -> Any:
    """Images as an array; raises a ValueError if they are not uint8 [N, H, H, 3], N >= 1."""
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}; uint8 is needed")
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are {list(images.shape)}; square ones [N, H, H, 3] are needed")
    if not images.size:
        raise ValueError(f"images are {list(images.shape)}; at least one is needed")
    return images


def levels(x: jax.Array) -> jax.Array:
    """Clipped and cut to whole levels, not rounded: what the published code does at the end."""
    return jnp.clip(jnp.floor(x + _ROUNDING), 0, WHITE)


def settled(x: jax.Array, change: jax.Array, flat: jax.Array, near: float | jax.Array) -> jax.Array:
    """Whole levels plus a change, cut; sums that are whole as the published arithmetic has them.

    A flat region is blurred into itself, or by rounding into a little less, which the cut lowers by
    one: `flat` [256] has the outcome for each level. What lies `near` a whole level is one.
    """
    nearest = jnp.round(change)
    outcome = flat.at[(x + nearest).astype(jnp.int32)].get(mode="clip")
    return jnp.where(jnp.abs(change - nearest) < near, outcome, x + jnp.floor(change))


def drawn(keys: Key, draw: Callable[[Key], jax.Array]) -> jax.Array:
    """`draw(key)` for every image's own key [N]: [N, ..]."""
    return jax.vmap(draw)(keys)


def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Uniform in (0, 1), in steps of 2^-16: the random bits are most of a noise's time on a CPU."""
    size = math.prod(shape)
    bits = jax.random.bits(key, (-(-size // 2),))
    halves = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[:size]
    return ((halves.astype(jnp.float32) + 0.5) * 2.0**-16).reshape(shape)


def filtered(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The same filter [H, H] on rows and on columns of square images [N, H, H, C]."""
    return separable(x, matrix, matrix)


def separable(x: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
    """`down @ x @ right.T` of each channel: x [N, H, W, C], down [I, H], right [J, W]."""
    x = jnp.einsum("ih,nhwc->niwc", down, x, precision="highest")
    return jnp.einsum("jw,niwc->nijc", right, x, precision="highest")


def gaussian(size: int, sigma: float, truncate: float = 4.0, edge: str = "nearest") -> np.ndarray:
    """A Gaussian filter as a matrix [size, size].

    Args:
        size: pixels of the axis.
        sigma: its deviation; 0 changes nothing.
        truncate: where it ends, in deviations.
        edge: what lies outside: "nearest" (a a | a b) or "reflect" (b a | a b).
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.eye(size)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return correlation(size, weights / weights.sum(), edge)


def correlation(size: int, weights: np.ndarray, edge: str) -> np.ndarray:
    """The correlation with an odd number of weights as a matrix [size, size].

    `edge` is one of `gaussian`'s, or "mirror" (c b | a b c).
    """
    radius = len(weights) // 2
    places = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
    if edge == "nearest":
        places = np.clip(places, 0, size - 1)
    else:
        period = max(2 * size if edge == "reflect" else 2 * size - 2, 1)
        places = places % period
        places = np.minimum(places, period - (1 if edge == "reflect" else 0) - places)
    matrix = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], places.shape)
    np.add.at(matrix, (rows, places), np.broadcast_to(weights, places.shape))
    return matrix


def zoom(size: int, factor: float) -> np.ndarray:
    """Enlarges the middle of an axis bilinearly, as a matrix [size, size].

    The middle `ceil(size / factor)` pixels are stretched from the first to the last, and what is
    too much is trimmed from both ends.
    """
    kept = math.ceil(size / factor)
    first = (size - kept) // 2
    stretched = round(kept * factor)
    trimmed = (stretched - size) // 2
    step = (kept - 1) / (stretched - 1) if stretched > 1 else 0.0
    places = (np.arange(size) + trimmed) * step
    below = np.minimum(np.floor(places).astype(int), kept - 1)
    above = np.minimum(below + 1, kept - 1)
    matrix, rows = np.zeros((size, size)), np.arange(size)
    np.add.at(matrix, (rows, first + below), 1 - (places - below))
    np.add.at(matrix, (rows, first + above), places - below)
    return matrix


def read(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Each image's pixels at whole places [N, H, W] inside of it."""
    n, height, width, channels = x.shape
    at = (rows * width + columns).reshape(n, -1, 1)
    pixels = x.reshape(n, height * width, channels)
    found = jnp.take_along_axis(pixels, at, axis=1, mode="promise_in_bounds")
    return found.reshape(*rows.shape, channels)


def bilinear(
    x: jax.Array, rows: jax.Array, columns: jax.Array, inside: Callable[[jax.Array, int], jax.Array]
) -> jax.Array:
    """Each image read at any places [N, H, W]; `inside(places, size)` folds what lies outside."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top, columns - left
    result = jnp.zeros((*rows.shape, x.shape[3]))
    for row, share_of_row in ((top, 1 - down), (top + 1, down)):
        for column, share in ((left, 1 - right), (left + 1, right)):
            at = (inside(place, x.shape[1]).astype(jnp.int32) for place in (row, column))
            result += (share_of_row * share)[..., None] * read(x, *at)
    return result


def reflected(places: jax.Array, size: int) -> jax.Array:
    """Whole places folded into an axis whose edge is doubled: b a | a b c | c b."""
    places = places - 2 * size * jnp.floor(places / (2 * size))
    return jnp.clip(jnp.minimum(places, 2 * size - 1 - places), 0, size - 1)


def mirrored(places: jax.Array, size: int) -> jax.Array:
    """Whole places folded into an axis whose edge is not doubled: c b | a b c | b a."""
    period = max(2 * size - 2, 1)
    places = places - period * jnp.floor(places / period)
    return jnp.clip(jnp.minimum(places, period - places), 0, size - 1)


def motion_weights(radius: float, sigma: float, most: float) -> np.ndarray:
    """Weights of the copies that a motion leaves, half a Gaussian, float32 [2 ceil(most) + 1].

    There are 2 ceil(radius) + 1 of them; the others are 0.
    """
    n = 2 * math.ceil(radius) + 1
    weights = np.zeros(2 * math.ceil(most) + 1, np.float32)
    weights[:n] = np.exp(-0.5 * (np.arange(n) / sigma) ** 2)
    return weights / weights.sum()


def moved(x: jax.Array, weights: jax.Array, angles: jax.Array) -> jax.Array:
    """Motion blur as ImageMagick's: a weighted sum of shifted copies, rounded to whole levels.

    Copy i is read i steps along the angle, in whole pixels; the edge goes on outside.

    Args:
        x: [N, H, W, C].
        weights: [K], see `motion_weights`.
        angles: [N], in radians; 0 reads from the right, a positive one from below.
    """
    n, height, width, channels = x.shape
    reach = len(weights) - 1
    steps = jnp.arange(len(weights), dtype=jnp.float32)[:, None]
    down, right = (
        jnp.ceil(steps * part - 0.5).astype(jnp.int32)
        for part in (jnp.sin(angles), jnp.cos(angles))
    )
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")

    def one(image: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
        total = jnp.zeros((height, width, channels))
        for i in range(len(weights)):
            corner = (reach + down[i], reach + right[i], 0)
            copy = jax.lax.dynamic_slice(image, corner, (height, width, channels))
            total = total + weights[i] * copy
        return total

    blurred = jax.lax.map(lambda image: one(*image), (padded, down.T, right.T))
    return jnp.floor(blurred + 0.5)
