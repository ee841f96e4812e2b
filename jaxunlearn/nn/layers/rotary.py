"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The frequency scaling of Llama 3.1 and later (`rope_type` "llama3").

    Attributes:
        factor: divisor of low frequencies.
        low: wavelengths above `context / low` are low frequencies.
        high: wavelengths below `context / high` are kept; between the two a line.
        context: original context length.
    """

    factor: float
    low: float
    high: float
    context: int


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair, float32 [h / 2]: theta^(-2 i / h), scaled as Llama 3's.

    Constants of a program, computed on the host: XLA's powers are off by a few units in the last
    place, which positions beyond 4,000 turn into angles that are off by 1e-3. So are NumPy's of
    float32 on some processors; the powers are therefore float64's, rounded.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.float64(theta) ** exponents.astype(np.float64)
    frequencies = np.float32(1) / powers.astype(np.float32)
    if scaling is None:
        return frequencies
    wavelengths = np.float32(2 * math.pi) / frequencies
    kept = (scaling.context / wavelengths - scaling.low) / (scaling.high - scaling.low)
    kept = np.clip(kept, 0.0, 1.0)
    scaled = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return scaled.astype(np.float32)


def rotation(positions_BT: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angle of every position and pair, float32 [B, T, h / 2]."""
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNh: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + h / 2) of every head, computed in the input's type."""
    cos, sin = (part[:, :, None].astype(x_BTNh.dtype) for part in rotation)
    first, second = jnp.split(x_BTNh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
