"""Wide residual networks."""

import functools

import jax
from flax import nnx

from jaxunlearn.core.model import RUNNING, Model, Statistics, from_nnx
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import Conv, avg_pool
from jaxunlearn.nn.layers.initializers import fan_out_normal, torch_default


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


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def wide_resnet(depth: int, width: int, n_classes: int = 10, n_channels: int = 3) -> Model:
    """WRN-depth-width (Zagoruyko & Komodakis 2016), pre-activation.

    3x3 convolution to 16, three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width`
    channels (strides 1, 2, 2), BatchNorm, ReLU, global average pool, linear with bias. Images are
    not normalised inside; `normalised` does that. Initialised as the official code: convolutions
    normal(0, sqrt(2 / (k k n_out))), bias of the last layer 0, its kernel PyTorch's default.

    Args:
        depth: number of layers, 6n + 4 (10, 16, 22, 28, 34, 40, ...).
        width: factor on the number of channels.
        n_classes: number of outputs.
        n_channels: channels of an image.

    Returns:
        A model from images [B, H, W, n_channels] to logits [B, n_classes]; with the static switch
        `apply(..., return_features=True)` to (logits, features before the last layer
        [B, 64 width]).

    Raises:
        ValueError: `depth` is not 6n + 4 with n at least 1, or `width` is below 1.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth is {depth}; allowed is 6n + 4 with n >= 1: 10, 16, 22, 28, ...")
    if width < 1:
        raise ValueError(f"width is {width}; it must be at least 1")
    n_blocks = (depth - 4) // 6
    return from_nnx(lambda rngs: WideResNet(n_blocks, width, n_classes, n_channels, rngs))
