"""Checks of image networks: their shape when they are made, images when they are traced."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxunlearn.core.checks import whole


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


def sizes(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Numbers of channels or units, each at least 1, as a tuple.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is {value!r}; a tuple of whole numbers is needed")
    return tuple(whole(name, size) for size in value)


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
