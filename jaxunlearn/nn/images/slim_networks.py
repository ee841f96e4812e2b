"""Small convolutional networks with BatchNorm, which folds into the convolutions for inference."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.checks import whole
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.cpu import batch_last
from jaxunlearn.nn.images import shapes
from jaxunlearn.nn.layers.batch_norm import EPSILON, BatchNorm
from jaxunlearn.nn.layers.convolution import Conv

SLIM_CHANNELS = (24, 48, 48, 72, 64)  # 14,370 parameters for 28 x 28 x 1, folded


class SlimCNN(nnx.Module):
    """A 3x3 convolution, then separable ones (3x3 of each channel, then 1x1); average; linear."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        channels: tuple[int, ...],
        n_classes: int,
        folded: bool,
        rngs: nnx.Rngs,
    ):
        self.input_shape = input_shape
        conv = functools.partial(Conv, use_bias=folded, rngs=rngs)
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        first = conv(input_shape[2], channels[0], 3)
        self.conv = nnx.List([first, *(conv(a, b, 1) for a, b in pairs)])
        self.depthwise = nnx.List(Conv(1, a, 3, use_bias=False, rngs=rngs) for a, _ in pairs)
        self.norm = nnx.List(BatchNorm(n, axis=0, rngs=rngs) for n in channels if not folded)
        self.head = nnx.Linear(channels[-1], n_classes, rngs=rngs)

    def __call__(self, x: jax.Array, statistics: Statistics = RUNNING) -> jax.Array:
        shapes.check(x, self.input_shape)
        x = batch_last.enter(x)
        for i, layer in enumerate(self.conv):
            if i:
                x = batch_last.depthwise(x, self.depthwise[i - 1].kernel[:, :, 0])
            x = batch_last.conv(x, layer.kernel[...], padding=0 if i else 1)
            if self.norm:
                x = self.norm[i](x, statistics=statistics)
            elif layer.bias is not None:
                x = x + layer.bias[...][:, None, None, None]
            x = jax.nn.relu(x)
            if i % 2 == 0 and i < len(self.conv) - 1:
                x = batch_last.max_pool(x)
        return self.head(x.mean((1, 2)).T)


class MinimalCNN(nnx.Module):
    """`ruslangrimov/mnist-minimal-model`: 4,862 parameters and 99.07 % on MNIST, as it says."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, folded: bool, rngs: nnx.Rngs):
        self.input_shape = input_shape
        height, width, n_in = input_shape
        for _ in range(2):
            height, width = (height - 2) // 2, (width - 2) // 2
        sizes = ((n_in, 8, 3), (8, 16, 3), (16, 16, 3), (16, 4, 1))
        conv = functools.partial(Conv, padding=0, rngs=rngs)
        self.conv = nnx.List(conv(a, b, size) for a, b, size in sizes)
        self.norm = nnx.List(BatchNorm(n, axis=0, rngs=rngs) for _, n, _ in sizes if not folded)
        self.hidden = nnx.Linear((height - 2) * (width - 2) * 4, 24, rngs=rngs)
        self.head = nnx.Linear(24, n_classes, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        statistics: Statistics = RUNNING,
        random: bool = False,
        key: Key | None = None,
    ) -> jax.Array:
        shapes.check(x, self.input_shape)
        x = batch_last.enter(x)
        for i, layer in enumerate(self.conv):
            assert layer.bias is not None
            x = batch_last.conv(x, layer.kernel[...]) + layer.bias[...][:, None, None, None]
            x = jax.nn.relu(self.norm[i](x, statistics=statistics) if self.norm else x)
            if random:
                assert key is not None
                kept = jax.random.bernoulli(fold(key, i), 0.9, x.shape)
                x = jnp.where(kept, x / 0.9, 0)
            if i < 2:
                x = batch_last.max_pool(x)
        x = batch_last.leave(x)
        return self.head(jax.nn.relu(self.hidden(x.reshape(x.shape[0], -1))))


def slim_cnn(
    input_shape: tuple[int, int, int],
    channels: tuple[int, ...] = SLIM_CHANNELS,
    n_classes: int = 10,
    *,
    folded: bool = False,
) -> Model:
    """Separable convolutions with BatchNorm and ReLU, pools after every second, global average.

    The first one is a usual 3x3 convolution; the 2x2 max-pools follow the first one, the third one
    and so on, but not the last one. Images are floats, [B, *input_shape].

    Args:
        input_shape: height, width and channels of an image.
        channels: outputs of the convolutions.
        n_classes: number of classes.
        folded: the network for inference, with biases in place of BatchNorm; see
            `fold_batch_norm`.

    Raises:
        ValueError: an image that the pools leave nothing of, or sizes that are none.
    """
    channels = shapes.sizes("channels", channels)
    if not channels:
        raise ValueError("channels is (); at least one convolution is needed")
    shape = shapes.image_shape(input_shape, 2 ** (len(channels) // 2))
    return _model(SlimCNN, shape, channels, whole("n_classes", n_classes), folded)


def minimal_cnn(
    input_shape: tuple[int, int, int], n_classes: int = 10, *, folded: bool = False
) -> Model:
    """The network of `ruslangrimov/mnist-minimal-model`, of 4,862 parameters for 28 x 28 x 1.

    The sides of an image are at least 18. Arguments are those of `slim_cnn`.

    Raises:
        ValueError: an image that is too small, or sizes that are none.
    """
    shape = shapes.image_shape(input_shape, 18)
    return _model(MinimalCNN, shape, whole("n_classes", n_classes), folded)


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def _model(network: Callable[..., nnx.Module], *sizes: Any) -> Model:
    return from_nnx(lambda rngs: network(*sizes, rngs))


def fold_batch_norm(params: Tree, stats: Tree) -> Tree:
    """Parameters of the folded network, which says the same as the trained one in eval mode.

    Those of the trained one, a `slim_cnn` or `minimal_cnn`, are given with its statistics.
    """
    rest = {name: layer for name, layer in params.items() if name not in ("conv", "norm")}
    folded = {}
    for name, conv in params["conv"].items():
        norm, running = params["norm"][name], stats["norm"][name]
        factor = norm["scale"] * jax.lax.rsqrt(running["var"] + EPSILON)
        bias = conv.get("bias", 0.0) - running["mean"]
        folded[name] = {"kernel": conv["kernel"] * factor, "bias": norm["bias"] + bias * factor}
    return {"conv": folded, **rest}
