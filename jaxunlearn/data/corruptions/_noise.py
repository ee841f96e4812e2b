"""Noise: Gaussian, shot, impulse and speckle noise."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key
from jaxunlearn.data.corruptions._planes import WHITE, drawn, uniform


def gaussian_noise(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Normal noise of one deviation."""
    return x + WHITE * made["deviation"] * _normal(x, keys)


def speckle_noise(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Normal noise whose deviation grows with the value."""
    return x + x * made["deviation"] * _normal(x, keys)


def impulse_noise(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Values of every channel on its own, lost to black or white with equal chance."""
    u = drawn(keys, lambda key: uniform(key, x.shape[1:]))
    return jnp.where(u < made["share"], jnp.where(u < made["share"] / 2, 0.0, WHITE), x)


def shot_noise(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Counts of photons, a Poisson law, by the inverse of its distribution function.

    More counts than white has are white, so that the table of the 256 levels ends there.
    """
    u = drawn(keys, lambda key: uniform(key, x.shape[1:]))
    rows = x.astype(jnp.int32) * made["below"].shape[1]
    below = made["below"].reshape(-1)
    count = jnp.zeros(x.shape, jnp.int32)
    step = made["below"].shape[1] // 2
    while step:  # the largest count whose smaller ones together are no likelier than u
        ahead = count + step
        count = jnp.where(below.at[rows + ahead].get(mode="promise_in_bounds") <= u, ahead, count)
        step //= 2
    return count * WHITE / made["photons"]


def deviation(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `gaussian_noise` and `speckle_noise`."""
    return {"deviation": c[0]}


def share(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `impulse_noise`."""
    return {"share": c[0]}


def counts(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `shot_noise`: P(count < k) for each level of a pixel, [256, a power of two > photons]."""
    from scipy.stats import poisson

    columns = 2 ** int(np.ceil(np.log2(most[0] + 2)))
    k = np.arange(columns)
    below = poisson.cdf(k - 1, np.arange(256)[:, None] * c[0] / WHITE)
    below = np.where(k <= np.ceil(c[0]), below, 2.0)  # further ones are never reached
    return {"below": below, "photons": c[0]}


def _normal(x: jax.Array, keys: Key) -> jax.Array:
    u = drawn(keys, lambda key: uniform(key, x.shape[1:]))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(2 * u - 1)
