"""Whether a convolution is XLA's own, or one of those of `nn.cpu`."""

import contextlib
import contextvars
from typing import Any

import jax
import jax.numpy as jnp

_plain = contextvars.ContextVar("plain", default=False)
_by_taps = contextvars.ContextVar("by_taps", default=False)


def lax_conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Any,
    images: str = "NHWC",
    groups: int = 1,
) -> jax.Array:
    """XLA's own convolution: [B, H, W, C] and [k, k, C, F] -> [B, H', W', F], by default."""
    options = {"dimension_numbers": (images, "HWIO", images), "feature_group_count": groups}
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **options)


def is_plain(x: jax.Array, depthwise: bool = False) -> bool:
    """Whether a (depthwise) convolution of `x` is XLA's own: off a CPU, and where asked for."""
    if depthwise and _by_taps.get():
        return False
    # In half precision the sums of the other lowerings would lose digits that XLA's keeps.
    is_half = x.dtype not in (jnp.float32, jnp.float64)
    return jax.default_backend() != "cpu" or is_half or _plain.get()


@contextlib.contextmanager
def plain_convolutions(depthwise: bool = True):
    """A `with` block in which functions are traced with XLA's convolutions, on a CPU too.

    Functions compiled before keep their lowering: enter it before a function's first call.

    Args:
        depthwise: whether depthwise ones are XLA's too; else they are sums over a kernel's taps on
            every device. XLA's take 4 times as long for an image on a CPU.
    """
    tokens = _plain.set(True), _by_taps.set(not depthwise)
    try:
        yield
    finally:
        _plain.reset(tokens[0])
        _by_taps.reset(tokens[1])
