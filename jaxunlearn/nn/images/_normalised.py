"""Normalisation of images inside a network."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxunlearn.core.model import Model
from jaxunlearn.core.pixels import as_float
from jaxunlearn.core.tree import Tree


def normalised(model: Model, mean: Sequence[float], std: Sequence[float]) -> Model:
    """The model behind `(x - mean) / std` per channel; same parameters, same statistics.

    Images of dtype uint8 are scaled to [0, 1] first, floats are taken as they are. The same
    arguments give the same `Model` object.

    Args:
        model: takes images [B, ..., C] as its first input.
        mean: mean of each channel, on the scale of [0, 1] for uint8 images.
        std: standard deviation of each channel, positive.

    Raises:
        ValueError: `mean` and `std` differ in length, or a deviation is not positive; or, at
            `apply`, images of another number of channels or of another integer dtype.
    """
    if len(mean) != len(std):
        raise ValueError(f"mean has {len(mean)} channels and std {len(std)}; they must agree")
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {tuple(std)}; every value must be positive")
    return _normalised(model, tuple(map(float, mean)), tuple(map(float, std)))


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def _normalised(model: Model, mean: tuple[float, ...], std: tuple[float, ...]) -> Model:
    def apply(params: Tree, stats: Tree, x: Any, *inputs: Any, **static: Any) -> tuple[Any, Tree]:
        if x.shape[-1] != len(mean):
            raise ValueError(f"x has shape {x.shape}; mean and std are for {len(mean)} channels")
        x = as_float(x, "x")
        x = (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)
        return model.apply(params, stats, x, *inputs, **static)

    return Model(model.init, apply)
