"""A family of small convolutional networks, by cost."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxunlearn.core.model import Model
from jaxunlearn.nn.images._cnn import cnn

_FACTORS = (1, 2, 2)  # channels of the stages, in units of the width
_BLOCKS_FROM = 16  # pixels; larger images are read in blocks of 2x2
_STEP = 8  # widths above it are its multiples: whole vectors of a CPU


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def small_cnn(input_shape: tuple[int, int, int], multiply_adds: int, n_classes: int = 10) -> Model:
    """The widest small convolutional network within a budget of multiply-adds per image.

    Images of at least 16 pixels are first read in blocks: 2x2 pixels become the channels of one
    (space to depth), since full resolution would take most of the time for the least of the
    parameters. Then come three stages of w, 2w and 2w channels, each a 3x3 convolution, BatchNorm,
    ReLU and a 2x2 max-pool (two stages if 4 to 7 positions are left, one below), and a linear
    layer. The width w is the largest of 1 to 8, 16, 24, ... that stays within the budget.

    Args:
        input_shape: (height, width, channels) of one image, at least 2 x 2.
        multiply_adds: most multiply-adds per image, as `nn.multiply_adds` counts them.
        n_classes: number of outputs.

    Returns:
        A model from images [B, H, W, C] to logits [B, n_classes].

    Raises:
        ValueError: the image is below 2 x 2, or `multiply_adds` below the smallest network.
    """
    if min(input_shape[:2]) < 2:
        raise ValueError(f"input_shape is {input_shape}; height and width must be at least 2")
    in_blocks = min(input_shape[:2]) >= _BLOCKS_FROM
    shape = input_shape
    if in_blocks:
        height, length, n_in = input_shape
        shape = (math.ceil(height / 2), math.ceil(length / 2), 4 * n_in)
    least = _cost(shape, 1, n_classes)
    if multiply_adds < least:
        raise ValueError(
            f"multiply_adds is {multiply_adds}; the smallest network for {input_shape} and "
            f"{n_classes} classes takes {least}"
        )
    width = 1
    while _cost(shape, _next(width), n_classes) <= multiply_adds:
        width = _next(width)
    model = cnn(shape, _channels(shape, width), n_classes, batch_norm=True)
    return _of_blocks(model) if in_blocks else model


def _next(width: int) -> int:
    return width + (1 if width < _STEP else _STEP)


def _channels(shape: tuple[int, int, int], width: int) -> tuple[int, ...]:
    n_stages = min(len(_FACTORS), min(shape[:2]).bit_length() - 1)
    return tuple(width * factor for factor in _FACTORS[:n_stages])


def _cost(shape: tuple[int, int, int], width: int, n_classes: int) -> int:
    """Multiply-adds of the network of that width."""
    height, length, n_in = shape
    total = 0
    for n_out in _channels(shape, width):
        total += height * length * 9 * n_in * n_out
        height, length, n_in = height // 2, length // 2, n_out
    return total + height * length * n_in * n_classes


def _of_blocks(model: Model) -> Model:
    def apply(params, stats, x: jax.Array, **static):
        return model.apply(params, stats, _blocks(x), **static)

    return Model(model.init, apply)


def _blocks(x: jax.Array) -> jax.Array:
    """2x2 pixels as channels of one, an odd edge filled with zeros: [B, H, W, C] -> [.., 4C]."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(batch, rows, 2, columns, 2, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, rows, columns, 4 * channels)
