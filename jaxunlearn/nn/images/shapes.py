"""Checks of image networks: their shape when they are made, images when they are traced."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def image_shape(value: Sequence[int], least: int) -> tuple[int, int, int]:
    """(height, width, channels), the sides at least so many pixels.

    Raises:
        ValueError: anything else.
    """
    try:
        height, width, channels = (operator.index(side) for side in value)
    except (TypeError, ValueError):
        raise ValueError(
            f"input_shape is {value!r}; (height, width, channels) is needed, whole numbers"
        ) from None
    if min(height, width) < least or channels < 1:
        raise ValueError(
            f"input_shape is {tuple(value)}; (height, width, channels) is needed, with sides of at "
            f"least {least} pixels, of which convolutions and pools leave one"
        )
    return height, width, channels


def check(x: jax.Array, input_shape: tuple[int, ...]) -> None:
    """Whether images are those of a network.

    Raises:
        ValueError: other sizes or types.
    """
    if x.shape[1:] != input_shape or not jnp.issubdtype(x.dtype, jnp.floating):
        wanted = ", ".join(map(str, input_shape))
        raise ValueError(
            f"x is {x.dtype}{list(x.shape)}; floats [B, {wanted}] are needed (for uint8: "
            "`data.augment.as_float`)"
        )
