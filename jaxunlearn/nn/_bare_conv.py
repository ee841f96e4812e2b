"""Convolutions without bias, and the initialisations that PyTorch code gives them."""

import jax
from flax import nnx

from jaxunlearn.nn.conv import conv

# PyTorch's default for convolutions and linear layers: Kaiming uniform with a = sqrt(5), that is
# uniform within +-1 / sqrt(fan_in).
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 in the form of the residual networks: normal(0, sqrt(2 / (k k n_out))).
fan_out_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class BareConv(nnx.Module):
    """A convolution without bias whose kernel is drawn by `init`; the rest is as in `Conv`."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int = 3,
        *,
        init: nnx.Initializer,
        stride: int = 1,
        padding: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (size, size, n_in, n_out)))
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x, self.kernel[...], self.stride, self.padding)
