"""Images of integers as numbers in [0, 1]."""

from typing import Any

import jax.numpy as jnp


def as_float(images: Any, name: str = "images") -> Any:
    """Images in [0, 1]: uint8 divided by 255 in float32, floats as they are.

    Args:
        images: an array of NumPy or JAX, which the result is too.
        name: their name in an error.

    Raises:
        ValueError: images of another type.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {images.dtype}; uint8, or floats in [0, 1], are needed")
    return images
