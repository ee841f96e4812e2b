"""Whether a convolution is XLA's own, or one of those of `nn.cpu`."""

import contextlib
import contextvars

import jax
import jax.numpy as jnp

_plain = contextvars.ContextVar("plain", default=False)
_by_taps = contextvars.ContextVar("by_taps", default=False)
_NHWC = ("NHWC", "HWIO", "NHWC")


def lax_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """XLA's own convolution: [B, H, W, C] and [k, k, C, F] -> [B, H', W', F]."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_NHWC
    )


def is_plain(x: jax.Array, depthwise: bool = False) -> bool:
    """Whether a convolution of `x` is XLA's own: off a CPU, and where it is asked for.

    Args:
        x: input of the convolution.
        depthwise: whether it is a depthwise one.
    """
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
