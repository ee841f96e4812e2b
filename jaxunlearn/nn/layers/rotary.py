"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864); see `frequencies` too."""

import jax
import jax.numpy as jnp
import numpy as np


def rotation(positions_BT: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angle of every position and pair, float32 [B, T, h / 2]."""
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNh: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + h / 2) of every head, computed in the input's type."""
    cos, sin = (part[:, :, None].astype(x_BTNh.dtype) for part in rotation)
    first, second = jnp.split(x_BTNh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
