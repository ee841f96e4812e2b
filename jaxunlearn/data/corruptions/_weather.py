"""Weather: snow, frost, fog."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data.corruptions import _planes
from jaxunlearn.data.corruptions._planes import WHITE, drawn, filtered, levels, uniform

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_ICE = np.array([146.0, 167.0, 179.0], np.float32)  # mean colour of the five published photos
_SHADE = np.array([40.0, 32.0, 30.0], np.float32)  # how far the photos' means lie apart
_CRYSTALS = 26.0  # deviation of the levels within one picture


def snow(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Flakes that fall, twice (the second time turned by 180 degrees), on a whitened image."""

    def draw(key: Key) -> tuple[jax.Array, jax.Array]:
        flakes = jax.random.normal(fold(key, "flakes"), (*x.shape[1:3], 1))
        angle = jax.random.uniform(fold(key, "angle"), minval=-3 * jnp.pi / 4, maxval=-jnp.pi / 4)
        return flakes, angle

    flakes, angles = jax.vmap(draw)(keys)
    layer = filtered(made["mean"] + made["deviation"] * flakes, made["zoom"])
    layer = levels(WHITE * jnp.where(layer < made["threshold"], 0, layer))
    layer = _planes.moved(layer, made["weights"], angles)
    white = 1.5 * (x * _GREY).sum(-1, keepdims=True) + WHITE / 2
    x = made["kept"] * x + (1 - made["kept"]) * jnp.maximum(x, white)
    return x + layer + layer[:, ::-1, ::-1]


def fog(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """A cloud of fractal density, which takes its share of the brightness."""
    size = x.shape[1]
    cloud = drawn(keys, lambda key: plasma(key, size, made["decay"]))[..., None]
    top = x.max(axis=(1, 2, 3), keepdims=True)
    density = WHITE * made["density"]
    return (x + density * cloud) * top / (top + density)


def plasma(key: Key, size: int, decay: jax.Array) -> jax.Array:
    """A height map in [0, 1] by the diamond-square algorithm, [size, size].

    The map's side is the next power of two; it is a torus. Each point is the mean of four older
    ones plus a uniform number of up to w^2, w = 100 at first and divided by `decay` at each scale.
    """
    side = 1 << (size - 1).bit_length()
    draws = 2 * uniform(key, (side * side,)) - 1
    heights, used, wibble = jnp.zeros((1, 1)), 1, jnp.float32(100)
    while len(heights) < side:
        n = len(heights)
        first, *rest = draws[used : used + 3 * n * n].reshape(3, n, n) * wibble**2
        right, below = jnp.roll(heights, -1, 1), jnp.roll(heights, -1, 0)
        middle = (heights + right + below + jnp.roll(right, -1, 0)) / 4 + first
        beside = (middle + jnp.roll(middle, 1, 0) + heights + right) / 4 + rest[0]
        under = (middle + jnp.roll(middle, 1, 1) + heights + below) / 4 + rest[1]
        rows = jnp.stack([heights, beside], -1), jnp.stack([under, middle], -1)
        heights = jnp.stack([row.reshape(n, 2 * n) for row in rows], 1).reshape(2 * n, 2 * n)
        used, wibble = used + 3 * n * n, wibble / decay
    heights = heights - heights.min()
    return (heights / heights.max())[:size, :size]


def frost(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Ice over the image: crops of the user's photos, or `ice` where there are none."""
    size = x.shape[1]
    if "photos" not in made:
        return made["image"] * x + made["ice"] * drawn(keys, lambda key: ice(key, size))

    def crop(key: Key) -> jax.Array:
        which = jax.random.randint(fold(key, "photo"), (), 0, len(made["photos"]))
        corner = jax.random.randint(fold(key, "corner"), (2,), 0, made["sizes"][which] - size)
        at = (which, *corner, 0)
        return jax.lax.dynamic_slice(made["photos"], at, (1, size, size, 3))[0].astype(x.dtype)

    return made["image"] * x + made["ice"] * drawn(keys, crop)


def ice(key: Key, size: int) -> jax.Array:
    """A procedural texture of ice in levels, [size, size, 3]: it stands for the published photos.

    Crystals are the ridges of a height map that is rough at all scales; colour, its spread between
    pictures and the contrast within one are those of the photos.
    """
    ridges = 1 - jnp.abs(2 * plasma(fold(key, "crystals"), size, jnp.float32(1.15)) - 1)
    ridges = (ridges - 0.7) / 0.2  # their mean and deviation
    shade = jax.random.uniform(fold(key, "shade"), minval=-1, maxval=1) * 3**0.5
    return jnp.clip(_ICE + shade * _SHADE + _CRYSTALS * ridges[..., None], 0, WHITE)


def flakes(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `snow`."""
    mean, deviation, zoom, threshold, radius, sigma, kept = c
    return {
        "mean": mean,
        "deviation": deviation,
        "zoom": _planes.zoom(size, zoom),
        "threshold": threshold,
        "weights": _planes.motion_weights(radius, sigma, most[4]),
        "kept": kept,
    }


def shares(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `frost`."""
    return {"image": c[0], "ice": c[1]}


def cloud(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `fog`."""
    return {"density": c[0], "decay": c[1]}
