"""What a small network costs: parameters, multiply-adds, bytes, time."""

import functools
import time
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import tree
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import augment
from jaxunlearn.nn import multiply_adds


def size(model: Model, params: Tree, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters, multiply-adds of an image, and bytes of the weights.

    Returns:
        `parameters`, `multiply_adds` and `weight_bytes` (float32).
    """
    parameters = tree.size(params)
    return {
        "parameters": parameters,
        "multiply_adds": multiply_adds(model, input_shape),
        "weight_bytes": 4 * parameters,
    }


def speed(
    program: bytes, input_shape: tuple[int, int, int], *, calls: int = 1000, batch: int = 1000
) -> dict[str, float]:
    """Times an exported program on this machine, compiled once, from NumPy to NumPy.

    Returns:
        `p50_ms` and `p99_ms` of single images, over `calls` calls, and `images_per_second` of
        batches of `batch`, the median of 10.
    """
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    images = np.random.default_rng(0).random((batch, *input_shape), np.float32)

    def seconds(x: np.ndarray, n: int) -> list[float]:
        compiled = call.lower(x).compile()
        np.asarray(compiled(x))
        times = []
        for _ in range(n):
            start = time.perf_counter()
            np.asarray(compiled(x))
            times.append(time.perf_counter() - start)
        return times

    p50, p99 = np.percentile(seconds(images[:1], calls), [50, 99]) * 1000
    many = batch / float(np.median(seconds(images, 10)))
    return {"p50_ms": float(p50), "p99_ms": float(p99), "images_per_second": many}


def logits_of(model: Model, params: Tree, x: np.ndarray) -> np.ndarray:
    """What a network says of images, uint8 or floats in [0, 1]: [n, n_classes]."""
    return np.asarray(_predict(model)(params, x))


def correct(model: Model, params: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which images each of N models classifies correctly, bool [N, n].

    Args:
        model: the network.
        params: leading axis N.
        x: as for `logits_of`.
        y: [n].
    """
    n_models = len(jax.tree.leaves(params)[0])
    # One model at a time: together their activations would not fit a cache.
    each = (tree.take(params, i) for i in range(n_models))
    return np.stack([logits_of(model, one, x).argmax(-1) == y for one in each])


def confusion(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How often class i (rows) was taken for class j: int [K, K]."""
    n_classes = logits.shape[-1]
    pairs = y * n_classes + logits.argmax(-1)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


@functools.cache
def _predict(model: Model) -> Any:
    return jax.jit(lambda params, x: predict(model, params, {}, augment.as_float(x)))
