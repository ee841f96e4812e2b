"""ResNet-9 for CIFAR-10."""

import functools

import jax
from flax import nnx

from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import Conv, global_max_pool, max_pool
from jaxunlearn.nn.layers.initializers import torch_default


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

    def __call__(self, x: jax.Array, statistics: Statistics = RUNNING) -> jax.Array:
        x = self.down(self.stem(x, statistics), statistics)
        x = self.residual1(x, statistics)
        x = max_pool(self.widen(x, statistics))
        x = self.residual2(x, statistics)
        x = global_max_pool(self.narrow(x, statistics))
        return 0.2 * self.head(x)


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def resnet9(n_classes: int = 10, n_channels: int = 3) -> Model:
    """The ResNet-9 of datamodels (Ilyas et al. 2022) and Datamodel Matching (arXiv 2410.23232).

    3x3 convolution to 64, 5x5 with stride 2 to 128, residual block, 3x3 to 256, 2x2 max-pool,
    residual block, 3x3 without padding to 128, global max-pool, linear without bias, times 0.2.
    Every convolution has no bias and is followed by BatchNorm and ReLU. 2,274,880 parameters for
    10 classes, initialised by PyTorch's default: uniform within +-1 / sqrt(fan_in).

    Args:
        n_classes: number of outputs.
        n_channels: channels of an image.

    Returns:
        A model from normalised images [B, 32, 32, n_channels] (any size from 11 x 11 on) to logits
        [B, n_classes].
    """
    return from_nnx(lambda rngs: ResNet9(n_classes, n_channels, rngs))
