"""Residual networks: ResNet-9 for CIFAR-10, and wide ones."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from jaxunlearn.core.checks import whole
from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import (
    Conv,
    avg_pool,
    fan_out_normal,
    global_max_pool,
    max_pool,
    torch_default,
)


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, n_in: int, n_out: int, size: int = 3, *, rngs: nnx.Rngs, **shape):
        kind = {"use_bias": False, "init": torch_default}
        self.conv = Conv(n_in, n_out, size, **kind, rngs=rngs, **shape)
        self.norm = BatchNorm(n_out, rngs=rngs)

    def __call__(self, x: jax.Array, statistics: Statistics) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), statistics=statistics))


class Residual(nnx.Module):
    """The input plus two `ConvNorm`; no activation after the sum."""

    def __init__(self, n: int, rngs: nnx.Rngs):
        self.first = ConvNorm(n, n, rngs=rngs)
        self.second = ConvNorm(n, n, rngs=rngs)

    def __call__(self, x: jax.Array, statistics: Statistics) -> jax.Array:
        return x + self.second(self.first(x, statistics), statistics)


class ResNet9(nnx.Module):
    """See `resnet9`. Sizes for 32 x 32: 32, 16, 16, 16 and 8, 8, 6, 1."""

    def __init__(self, n_classes: int, n_channels: int, rngs: nnx.Rngs):
        self.stem = ConvNorm(n_channels, 64, rngs=rngs)
        self.down = ConvNorm(64, 128, 5, stride=2, padding=2, rngs=rngs)
        self.residual1 = Residual(128, rngs)
        self.widen = ConvNorm(128, 256, rngs=rngs)
        self.residual2 = Residual(256, rngs)
        self.narrow = ConvNorm(256, 128, padding=0, rngs=rngs)
        self.head = nnx.Linear(128, n_classes, use_bias=False, kernel_init=torch_default, rngs=rngs)

    def __call__(
        self, x: jax.Array, statistics: Statistics = RUNNING, return_features: bool = False
    ):
        x = self.down(self.stem(x, statistics), statistics)
        x = self.residual1(x, statistics)
        x = max_pool(self.widen(x, statistics))
        x = self.residual2(x, statistics)
        features = global_max_pool(self.narrow(x, statistics))
        logits = 0.2 * self.head(features)
        return (logits, features) if return_features else logits


def resnet9(n_classes: int = 10, n_channels: int = 3) -> Model:
    """The ResNet-9 of datamodels (Ilyas et al. 2022) and Datamodel Matching (arXiv 2410.23232).

    3x3 convolution to 64, 5x5 with stride 2 to 128, residual block, 3x3 to 256, 2x2 max-pool,
    residual block, 3x3 without padding to 128, global max-pool, linear without bias, times 0.2.
    Every convolution has no bias and is followed by BatchNorm and ReLU. 2,274,880 parameters for
    10 classes, initialised by PyTorch's default: uniform within +-1 / sqrt(fan_in). Normalised
    images [B, 32, 32, n_channels] (any size from 11 x 11 on) give logits [B, n_classes]; with the
    static switch `apply(..., return_features=True)` (logits, features before the last layer).
    """
    return built(ResNet9, whole("n_classes", n_classes), whole("n_channels", n_channels))


class Block(nnx.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, plus a shortcut.

    Where the number of channels changes, the first BatchNorm and ReLU feed the 1x1 convolution of
    the shortcut too; elsewhere the shortcut is the raw input.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs):
        conv = functools.partial(Conv, use_bias=False, init=fan_out_normal, rngs=rngs)
        self.norm1 = BatchNorm(n_in, rngs=rngs)
        self.conv1 = conv(n_in, n_out, 3, stride=stride)
        self.norm2 = BatchNorm(n_out, rngs=rngs)
        self.conv2 = conv(n_out, n_out, 3)
        self.shortcut = conv(n_in, n_out, 1, stride=stride) if n_in != n_out else None

    def __call__(self, x: jax.Array, statistics: Statistics) -> jax.Array:
        y = jax.nn.relu(self.norm1(x, statistics=statistics))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = jax.nn.relu(self.norm2(self.conv1(y), statistics=statistics))
        return shortcut + self.conv2(y)


class WideResNet(nnx.Module):
    """See `wide_resnet`."""

    def __init__(
        self, blocks_per_group: int, width: int, n_classes: int, n_channels: int, rngs: nnx.Rngs
    ):
        self.stem = Conv(n_channels, 16, use_bias=False, init=fan_out_normal, rngs=rngs)
        blocks, n_in = [], 16
        for n_out, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for i in range(blocks_per_group):
                blocks.append(Block(n_in, n_out, first_stride if i == 0 else 1, rngs))
                n_in = n_out
        self.blocks = nnx.List(blocks)
        self.norm = BatchNorm(n_in, rngs=rngs)
        self.head = nnx.Linear(n_in, n_classes, kernel_init=torch_default, rngs=rngs)

    def __call__(
        self, x: jax.Array, statistics: Statistics = RUNNING, return_features: bool = False
    ):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, statistics)
        features = avg_pool(jax.nn.relu(self.norm(x, statistics=statistics)))
        logits = self.head(features)
        return (logits, features) if return_features else logits


def wide_resnet(depth: int, width: int, n_classes: int = 10, n_channels: int = 3) -> Model:
    """WRN-depth-width (Zagoruyko & Komodakis 2016), pre-activation.

    3x3 convolution to 16, three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width`
    channels (strides 1, 2, 2), BatchNorm, ReLU, global average pool, linear with bias. Images are
    not normalised inside; `normalised` does that. Initialised as the official code: convolutions
    normal(0, sqrt(2 / (k k n_out))), bias of the last layer 0, its kernel PyTorch's default.

    Images [B, H, W, n_channels] give logits [B, n_classes]; with the static switch
    `apply(..., return_features=True)` (logits, features before the last layer [B, 64 width]).

    Raises:
        ValueError: `depth` is not 6n + 4 with n at least 1, or `width` is below 1.
    """
    if whole("depth", depth) < 10 or depth % 6 != 4:
        raise ValueError(f"depth is {depth}; allowed is 6n + 4 with n >= 1: 10, 16, 22, 28, ...")
    sizes = (whole("width", width), whole("n_classes", n_classes), whole("n_channels", n_channels))
    return built(WideResNet, (depth - 4) // 6, *sizes)


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def built(network: Callable[..., nnx.Module], *sizes: int) -> Model:
    return from_nnx(lambda rngs: network(*sizes, rngs))
