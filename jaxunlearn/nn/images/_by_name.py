"""Image classifiers by their names, as settings and command lines give them."""

import math
import re
from typing import Any

import jax

from jaxunlearn.core.model import Model
from jaxunlearn.nn.images._cnn import cnn
from jaxunlearn.nn.images._mlp import mlp
from jaxunlearn.nn.images._normalised import normalised
from jaxunlearn.nn.images._resnet9 import resnet9
from jaxunlearn.nn.images._small_cnn import small_cnn
from jaxunlearn.nn.images._wide_resnet import wide_resnet


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
            BatchNorm, "small_cnn" (the widest within `multiply_adds`), "resnet9", or "wrn-16-1" and
            other wide residual networks by depth and width.
        shape: of one input, images (height, width, channels).
        n_classes: number of outputs.
        multiply_adds: most multiply-adds per image of a "small_cnn".
        statistics: mean and deviation of each channel, for images of integers; the network
            normalises them. None: inputs are floats as they are.

    Returns:
        A model from inputs [B, *shape] to logits [B, n_classes].

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
    if name == "resnet9":
        return resnet9(n_classes, n_channels=shape[-1])
    if residual:
        return wide_resnet(int(residual[1]), int(residual[2]), n_classes, n_channels=shape[-1])
    raise ValueError(
        f"model is {name!r}; it must be mlp, cnn, cnn_bn, small_cnn, resnet9 or wrn-DEPTH-WIDTH"
    )
