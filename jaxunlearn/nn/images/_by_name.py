"""Image classifiers by their names, as settings give them, and normalisation inside a network."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.model import Model
from jaxunlearn.core.pixels import as_float
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.images._bottleneck import resnet50, resnext29
from jaxunlearn.nn.images._residual import resnet9, wide_resnet
from jaxunlearn.nn.images._resnet26 import resnet26_gn
from jaxunlearn.nn.images._small import cnn, mlp, small_cnn

_RESIDUAL = {
    "resnet9": resnet9,
    "resnet26-gn": resnet26_gn,
    "resnet50": resnet50,
    "resnext29-4x32": resnext29,
}


def by_name(
    name: str,
    shape: tuple[int, ...],
    n_classes: int,
    *,
    multiply_adds: int = 1_000_000,
    statistics: tuple[Any, Any] | None = None,
) -> Model:
    """A classifier by its name, checked to fit its inputs.

    Args:
        name: "mlp" (one hidden layer of 64), "cnn" (two 3x3 convolutions), "cnn_bn", the same with
            BatchNorm, "small_cnn" (the widest within `multiply_adds`), "resnet9", "resnet26-gn",
            "resnet50", "resnext29-4x32", or "wrn-16-1" and other wide residual networks by depth
            and width.
        shape: of one input, images (height, width, channels).
        n_classes: number of outputs.
        multiply_adds: most multiply-adds per image of a "small_cnn".
        statistics: mean and deviation of each channel, for images of integers; the network
            normalises them. None: inputs are floats as they are.

    Returns:
        A model from inputs [B, *shape] to logits [B, n_classes]; with the static switch
        `apply(..., return_features=True)` to (logits, features before the last layer [B, D]).

    Raises:
        ValueError: an unknown name, or inputs that are too small, before anything is compiled.
    """
    model = _named(name, shape, n_classes, multiply_adds)
    model = model if statistics is None else normalised(model, *statistics)
    example = jax.ShapeDtypeStruct((1, *shape), "float32" if statistics is None else "uint8")
    try:
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x), jax.random.key(0), example)
    except ValueError as error:
        written = " x ".join(map(str, shape))
        raise ValueError(
            f"model is {name!r}, which does not fit inputs of {written}: {error}"
        ) from error
    return model


def _named(name: str, shape: tuple[Any, ...], n_classes: int, multiply_adds: int) -> Model:
    residual = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if name == "mlp":
        return mlp(math.prod(shape), (64,), n_classes)
    if name in ("cnn", "cnn_bn"):
        return cnn(shape, (16, 32), n_classes, batch_norm=name == "cnn_bn")
    if name == "small_cnn":
        return small_cnn(shape, multiply_adds, n_classes)
    if name in _RESIDUAL:
        return _RESIDUAL[name](n_classes, n_channels=shape[-1])
    if residual:
        return wide_resnet(int(residual[1]), int(residual[2]), n_classes, n_channels=shape[-1])
    raise ValueError(
        f"model is {name!r}; it must be mlp, cnn, cnn_bn, small_cnn, {', '.join(_RESIDUAL)} or "
        "wrn-DEPTH-WIDTH"
    )


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
