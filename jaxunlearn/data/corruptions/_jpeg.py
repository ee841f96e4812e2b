"""JPEG compression: on the device nearly as libjpeg's, on the host exactly, through Pillow."""

import io

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key
from jaxunlearn.data.corruptions._constants import constants
from jaxunlearn.data.corruptions._planes import WHITE, checked_images, separable

# Quantisation of luminance and of chrominance at quality 50: ITU-T T.81, annex K.1.
_LUMA = """16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62   18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99"""
_TABLES = np.array([text.split() for text in (_LUMA, _CHROMA)], np.float64).reshape(2, 8, 8)
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])
_GRID = np.arange(8)
_COSINES = np.sqrt(np.where(_GRID[:, None] == 0, 1 / 8, 1 / 4)) * np.cos(
    np.pi / 8 * _GRID[:, None] * (_GRID + 0.5)
)


def jpeg_compression(x: jax.Array, made: dict, keys: Key) -> jax.Array:
    """Colour at half the resolution, and 8x8 blocks whose cosine transform is quantised."""
    size = x.shape[1]
    padded = -size % 16
    x = jnp.pad(x, ((0, 0), (0, padded), (0, padded), (0, 0)), mode="edge")
    ycc = jnp.floor(x @ jnp.asarray(_TO_YCC.T, x.dtype) + jnp.array([0, 128, 128]) + 0.5)
    luma = _quantised(ycc[..., :1], made["tables"][0])
    n, side = len(x), x.shape[1] // 2
    colour = ycc[..., 1:].reshape(n, side, 2, side, 2, 2).sum((2, 4))
    # libjpeg adds 1 and 2 in turn before it divides by 4, so that halves go both ways.
    colour = jnp.floor((colour + 1 + jnp.arange(side)[:, None] % 2) / 4)
    colour = _quantised(colour, made["tables"][1])[:, : (size + 1) // 2, : (size + 1) // 2]
    colour = jnp.floor(separable(colour, made["up"], made["up"]) + 0.5) - 128
    decoded = jnp.concatenate([luma[:, :size, :size], colour], -1)
    return jnp.floor(decoded @ jnp.asarray(_TO_RGB.T, x.dtype) + 0.5)


def _quantised(planes: jax.Array, table: jax.Array) -> jax.Array:
    """Planes [N, H, W, C] after the loss of each 8x8 block."""
    n, height, width, channels = planes.shape
    cosines = jnp.asarray(_COSINES, planes.dtype)
    blocks = planes.reshape(n, height // 8, 8, width // 8, 8, channels) - 128
    wave = jnp.einsum("ua,vb,niajbc->niujvc", cosines, cosines, blocks)
    steps = table[:, None, :, None]
    wave = jnp.sign(wave) * jnp.floor(jnp.abs(wave / steps) + 0.5 + 1e-4) * steps  # halves go out
    blocks = jnp.einsum("ua,vb,niujvc->niajbc", cosines, cosines, wave)
    return jnp.clip(jnp.floor(blocks + 128.5), 0, WHITE).reshape(planes.shape)


def tables(c: np.ndarray, most: np.ndarray, size: int) -> dict:
    """Of `jpeg_compression`: the tables [2, 8, 8] of a quality, which is rounded to a whole one."""
    quality = round(c[0])
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return {"tables": np.clip((_TABLES * scale + 50) // 100, 1, 255), "up": _doubled(size)}


def _doubled(size: int) -> np.ndarray:
    """Colour of [size + 1] // 2 places for `size` pixels: 3/4 of the nearer, 1/4 of the other."""
    half = (size + 1) // 2
    pixel = np.arange(size)
    matrix = np.zeros((size, half))
    matrix[pixel, pixel // 2] = 0.75
    other = np.clip(pixel // 2 + np.where(pixel % 2, 1, -1), 0, half - 1)
    np.add.at(matrix, (pixel, other), 0.25)
    return matrix


def jpeg_exact(images: np.ndarray, severity: float, family: str = "cifar") -> np.ndarray:
    """JPEG compression by Pillow's libjpeg, on the host, one image after the other.

    Args:
        images: uint8 [N, H, W, 3].
        severity: 1 to 5; between two the quality is interpolated and rounded.
        family: "cifar" or "imagenet".

    Returns:
        uint8 [N, H, W, 3], what Pillow decodes of what it has encoded.

    Raises:
        ValueError: as `apply`.
    """
    from PIL import Image

    images = np.asarray(checked_images(images))
    quality = round(constants("jpeg_compression", family, severity)[0])
    decoded = np.empty_like(images)
    for image, result in zip(images, decoded, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        result[:] = Image.open(stream)
    return decoded
