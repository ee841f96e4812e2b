"""Residual networks of bottlenecks: ResNet-50, and ResNeXt-29 for images of 32 x 32."""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

from jaxunlearn.core.checks import whole
from jaxunlearn.core.model import RUNNING, Model, Statistics
from jaxunlearn.nn.images._residual import built
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import (
    Conv,
    avg_pool,
    fan_out_normal,
    overlapping_max_pool,
    torch_default,
)

RESNET50_BLOCKS = (3, 4, 6, 3)
RESNEXT29_BLOCKS = (3, 3, 3)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with BatchNorm, plus a shortcut; ReLU after all three.

    The stride is that of the 3x3 convolution. Where shapes change, the shortcut is a 1x1
    convolution with BatchNorm.
    """

    def __init__(self, n_in: int, width: int, n_out: int, stride: int, groups: int, rngs: nnx.Rngs):
        conv = functools.partial(Conv, use_bias=False, init=fan_out_normal, rngs=rngs)
        self.conv1, self.norm1 = conv(n_in, width, 1), BatchNorm(width)
        self.conv2 = conv(width, width, 3, stride=stride, groups=groups)
        self.norm2 = BatchNorm(width)
        self.conv3, self.norm3 = conv(width, n_out, 1), BatchNorm(n_out)
        is_same = n_in == n_out and stride == 1
        self.shortcut = None if is_same else conv(n_in, n_out, 1, stride=stride)
        self.shortcut_norm = None if is_same else BatchNorm(n_out)

    def __call__(self, x: jax.Array, statistics: Statistics) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), statistics=statistics))
        y = jax.nn.relu(self.norm2(self.conv2(y), statistics=statistics))
        y = self.norm3(self.conv3(y), statistics=statistics)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), statistics=statistics)
        return jax.nn.relu(x + y)


class _Network(nnx.Module):
    """Stem, stages of bottlenecks (each after the first halves height and width), linear layer."""

    def __init__(
        self,
        stem: Conv,
        n_blocks: Sequence[int],
        width: int,
        groups: int,
        head: nnx.Initializer,
        n_classes: int,
        rngs: nnx.Rngs,
    ):
        self.stem, self.norm = stem, BatchNorm(64)
        blocks, n_in, n_out = [], 64, 256
        for stage, n in enumerate(n_blocks):
            for i in range(n):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(n_in, width, n_out, stride, groups, rngs))
                n_in = n_out
            width, n_out = 2 * width, 2 * n_out
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(n_in, n_classes, kernel_init=head, rngs=rngs)

    def __call__(
        self, x: jax.Array, statistics: Statistics = RUNNING, return_features: bool = False
    ):
        x = self.pooled(jax.nn.relu(self.norm(self.stem(x), statistics=statistics)))
        for block in self.blocks:
            x = block(x, statistics)
        features = avg_pool(x)
        logits = self.head(features)
        return (logits, features) if return_features else logits

    def pooled(self, x: jax.Array) -> jax.Array:
        """What the first stage gets of the stem's output."""
        return x


class ResNet50(_Network):
    """See `resnet50`."""

    def __init__(self, n_classes: int, n_channels: int, rngs: nnx.Rngs):
        stem = Conv(n_channels, 64, 7, stride=2, use_bias=False, init=fan_out_normal, rngs=rngs)
        super().__init__(stem, RESNET50_BLOCKS, 64, 1, torch_default, n_classes, rngs)

    def pooled(self, x: jax.Array) -> jax.Array:
        return overlapping_max_pool(x)


class ResNeXt29(_Network):
    """See `resnext29`."""

    def __init__(self, n_classes: int, n_channels: int, rngs: nnx.Rngs):
        stem = Conv(n_channels, 64, use_bias=False, init=fan_out_normal, rngs=rngs)
        head = nnx.initializers.he_normal()
        super().__init__(stem, RESNEXT29_BLOCKS, 128, 4, head, n_classes, rngs)


def resnet50(n_classes: int = 1000, n_channels: int = 3) -> Model:
    """ResNet-50 (He et al. 2016) in the form of torchvision, "v1.5".

    7x7 convolution to 64 with stride 2, BatchNorm, ReLU, 3x3 max-pool with stride 2; 3, 4, 6 and 3
    bottlenecks of 64, 128, 256 and 512 channels with 4 times as many outputs, whose stride is that
    of the 3x3 convolution; global average pool, linear with bias. 25,557,032 parameters for 1000
    classes, initialised as torchvision's, but for the last layer's bias, which is 0. Images are not
    normalised inside; `normalised` does that.

    Images [B, H, W, n_channels] give logits [B, n_classes]; with the static switch
    `apply(..., return_features=True)` (logits, features before the last layer [B, 2048]).
    """
    return built(ResNet50, whole("n_classes", n_classes), whole("n_channels", n_channels))


def resnext29(n_classes: int = 10, n_channels: int = 3) -> Model:
    """ResNeXt-29 (4x32) for images of 32 x 32 (Xie et al. 2017, block C), as AugMix trained it.

    3x3 convolution to 64, BatchNorm, ReLU; three stages of 3 bottlenecks of 128, 256 and 512
    channels in 4 groups (cardinality 4, base width 32) with 256, 512 and 1024 outputs, strides 1, 2
    and 2; global average pool, linear with bias. 6,807,882 parameters for 10 classes, initialised
    as the official code: convolutions normal(0, sqrt(2 / (k k n_out))), the last layer He's. Images
    are not normalised inside; `normalised` does that.

    Images [B, H, W, n_channels] give logits [B, n_classes]; with the static switch
    `apply(..., return_features=True)` (logits, features before the last layer [B, 1024]).
    """
    return built(ResNeXt29, whole("n_classes", n_classes), whole("n_channels", n_channels))
