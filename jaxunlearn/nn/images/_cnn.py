"""A small convolutional network."""

import functools

import jax
from flax import nnx

from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import Conv, max_pool


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
        n_outs = (n_in, *channels)
        pairs = list(zip(n_outs[:-1], n_outs[1:], strict=True))
        self.conv = nnx.List(Conv(a, b, use_bias=not batch_norm, rngs=rngs) for a, b in pairs)
        normed = pairs if batch_norm else []
        self.norm = nnx.List(BatchNorm(b, rngs=rngs) for _, b in normed)
        shrink = 2 ** len(channels)
        n_features = (height // shrink) * (width // shrink) * n_outs[-1]
        self.head = nnx.Linear(n_features, n_classes, rngs=rngs)

    def __call__(self, x: jax.Array, statistics: Statistics = RUNNING) -> jax.Array:
        for i, layer in enumerate(self.conv):
            x = layer(x)
            if self.norm:
                x = self.norm[i](x, statistics=statistics)
            x = max_pool(jax.nn.relu(x))
        return self.head(x.reshape(x.shape[0], -1))


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
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
        A model from images [B, H, W, C] to logits [B, n_classes].

    Raises:
        ValueError: the image is too small for the number of convolutions.
    """
    height, width, _ = input_shape
    if min(height, width) < 2 ** len(channels):
        raise ValueError(
            f"channels is {channels}: {len(channels)} poolings leave nothing of {height}x{width}"
        )
    return from_nnx(lambda rngs: CNN(input_shape, channels, n_classes, batch_norm, rngs))
