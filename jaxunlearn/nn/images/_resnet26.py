"""ResNet-26 with GroupNorm, whose predictions do not depend on the rest of the batch."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.checks import whole
from jaxunlearn.core.model import Model
from jaxunlearn.nn.images._residual import built
from jaxunlearn.nn.layers.convolution import Conv, avg_pool, fan_out_normal, torch_default
from jaxunlearn.nn.layers.norms import GroupNorm

BLOCKS = (4, 4, 4)
_GROUPS = 8


class Block(nnx.Module):
    """GroupNorm, ReLU, 3x3 convolution, twice, plus the raw input.

    With a stride the shortcut is averaged over pixels; channels that it lacks are zeros.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs):
        conv = functools.partial(Conv, use_bias=False, init=fan_out_normal, rngs=rngs)
        self.norm1, self.conv1 = GroupNorm(n_in, _GROUPS), conv(n_in, n_out, stride=stride)
        self.norm2, self.conv2 = GroupNorm(n_out, _GROUPS), conv(n_out, n_out)
        self.stride, self.n_new = stride, n_out - n_in

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return y + jnp.pad(_averaged(x, self.stride), ((0, 0), (0, 0), (0, 0), (0, self.n_new)))


def _averaged(x: jax.Array, stride: int) -> jax.Array:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // stride, stride, width // stride, stride, channels)
    return x.mean((2, 4))


class ResNet26(nnx.Module):
    """See `resnet26_gn`."""

    def __init__(self, n_classes: int, n_channels: int, rngs: nnx.Rngs):
        self.stem = Conv(n_channels, 16, use_bias=False, init=fan_out_normal, rngs=rngs)
        blocks, n_in = [], 16
        for stage, (n, n_out) in enumerate(zip(BLOCKS, (16, 32, 64), strict=True)):
            for i in range(n):
                blocks.append(Block(n_in, n_out, 2 if stage > 0 and i == 0 else 1, rngs))
                n_in = n_out
        self.blocks = nnx.List(blocks)
        self.norm = GroupNorm(n_in, _GROUPS)
        self.head = nnx.Linear(n_in, n_classes, kernel_init=torch_default, rngs=rngs)

    def __call__(self, x: jax.Array, return_features: bool = False):
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(f"x is {list(x.shape)}; height and width must be multiples of 4")
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        features = avg_pool(jax.nn.relu(self.norm(x)))
        logits = self.head(features)
        return (logits, features) if return_features else logits


def resnet26_gn(n_classes: int = 10, n_channels: int = 3) -> Model:
    """ResNet-26 with GroupNorm for CIFAR-10, pre-activation, as test-time training uses it.

    (Sun et al. 2020.) 3x3 convolution to 16, three stages of 4 blocks of two 3x3 convolutions with
    16, 32 and 64 channels (strides 1, 2, 2), GroupNorm of 8 groups, ReLU, global average pool,
    linear with bias. A shortcut is averaged over the pixels of a stride and filled up with zero
    channels. There are no statistics of batches. Images are not normalised inside; `normalised`
    does that. Convolutions are drawn as in `wide_resnet`.

    Images [B, H, W, n_channels], with sides that are multiples of 4, give logits [B, n_classes];
    with the static switch `apply(..., return_features=True)` (logits, features before the last
    layer [B, 64]).
    """
    return built(ResNet26, whole("n_classes", n_classes), whole("n_channels", n_channels))
