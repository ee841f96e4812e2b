"""Small classifiers: perceptrons, convolutional networks, and a family of these by cost."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.checks import whole
from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.nn.images import shapes
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import Conv, max_pool

_FACTORS = (1, 2, 2)  # channels of the stages, in units of the width
_BLOCKS_FROM = 16  # pixels; larger images are read in blocks of 2x2
_STEP = 8  # widths above it are its multiples: whole vectors of a CPU


class MLP(nnx.Module):
    """Flatten, then ReLU layers, then a linear one."""

    def __init__(self, n_inputs: int, hidden: tuple[int, ...], n_classes: int, rngs: nnx.Rngs):
        widths = (n_inputs, *hidden, n_classes)
        self.dense = nnx.List(nnx.Linear(*pair, rngs=rngs) for pair in itertools.pairwise(widths))

    def __call__(self, x: jax.Array, return_features: bool = False):
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        logits = self.dense[-1](x)
        return (logits, x) if return_features else logits


def mlp(n_inputs: int, hidden: tuple[int, ...] = (64,), n_classes: int = 10) -> Model:
    """A multi-layer perceptron with ReLU and hidden layers of these widths.

    Inputs [B, ...], flattened to `n_inputs` numbers, give logits [B, n_classes]; parameters are
    `dense/000/kernel`, ... With the static switch `apply(..., return_features=True)` they are
    (logits, features before the last layer [B, D]), as in all classifiers here.

    Raises:
        ValueError: a size that is no whole number of at least 1.
    """
    return _mlp(
        whole("n_inputs", n_inputs), shapes.sizes("hidden", hidden), whole("n_classes", n_classes)
    )


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def _mlp(n_inputs: int, hidden: tuple[int, ...], n_classes: int) -> Model:
    return from_nnx(lambda rngs: MLP(n_inputs, hidden, n_classes, rngs))


class CNN(nnx.Module):
    """Per entry of `channels`: 3x3 convolution, (BatchNorm,) ReLU, 2x2 max-pool; then linear."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        channels: tuple[int, ...],
        n_classes: int,
        batch_norm: bool,
        rngs: nnx.Rngs,
    ):
        height, width, n_in = input_shape
        pairs = list(itertools.pairwise((n_in, *channels)))
        self.conv = nnx.List(Conv(a, b, use_bias=not batch_norm, rngs=rngs) for a, b in pairs)
        self.norm = nnx.List(BatchNorm(n, rngs=rngs) for n in channels if batch_norm)
        shrink = 2 ** len(channels)
        n_features = (height // shrink) * (width // shrink) * (n_in, *channels)[-1]
        self.head = nnx.Linear(n_features, n_classes, rngs=rngs)

    def __call__(
        self, x: jax.Array, statistics: Statistics = RUNNING, return_features: bool = False
    ):
        for i, layer in enumerate(self.conv):
            x = layer(x)
            if self.norm:
                x = self.norm[i](x, statistics=statistics)
            x = max_pool(jax.nn.relu(x))
        features = x.reshape(x.shape[0], -1)
        logits = self.head(features)
        return (logits, features) if return_features else logits


def cnn(
    input_shape: tuple[int, int, int],
    channels: tuple[int, ...] = (16, 32),
    n_classes: int = 10,
    batch_norm: bool = False,
) -> Model:
    """A small convolutional network.

    Args:
        input_shape: (height, width, channels) of one image; each entry of `channels` halves height
            and width, and at least 1 must remain.
        channels: output channels of each convolution.
        n_classes: number of outputs.
        batch_norm: BatchNorm after each convolution, in place of its bias.

    Returns:
        A model from images [B, H, W, C] to logits [B, n_classes]; with the static switch
        `apply(..., return_features=True)` to (logits, features before the last layer [B, D]).

    Raises:
        ValueError: the image is too small for the number of convolutions, or a size is no whole
            number of at least 1.
    """
    input_shape, channels = shapes.image_shape(input_shape, 1), shapes.sizes("channels", channels)
    height, width, _ = input_shape
    if min(height, width) < 2 ** len(channels):
        raise ValueError(
            f"channels is {channels}: {len(channels)} poolings leave nothing of {height}x{width}"
        )
    return _cnn(input_shape, channels, whole("n_classes", n_classes), bool(batch_norm))


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def _cnn(
    input_shape: tuple[int, int, int], channels: tuple[int, ...], n_classes: int, batch_norm: bool
) -> Model:
    return from_nnx(lambda rngs: CNN(input_shape, channels, n_classes, batch_norm, rngs))


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
    input_shape = shapes.image_shape(input_shape, 2)
    multiply_adds, n_classes = whole("multiply_adds", multiply_adds), whole("n_classes", n_classes)
    in_blocks = min(input_shape[:2]) >= _BLOCKS_FROM
    shape = input_shape
    if in_blocks:
        shape = (-(-input_shape[0] // 2), -(-input_shape[1] // 2), 4 * input_shape[2])
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


@functools.cache  # one `Model` for one
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
