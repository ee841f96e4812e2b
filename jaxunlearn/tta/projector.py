"""The projector of contrastive losses: two linear layers with a ReLU between them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.tree import Tree

WIDTH = 128  # outputs of a random one
NAMES = ("w1", "b1", "w2", "b2")


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A projector's arrays as a setting: hashed by identity, as settings of a method are."""

    arrays: dict[str, Any]


def setting(projection: Any) -> Literal["random"] | Given | None:
    """The setting `projection`, in which arrays are hashable.

    Raises:
        ValueError: neither "random", None nor arrays (w1 [D, P], b1 [P], w2 [P, Q], b2 [Q]).
    """
    if projection is None or isinstance(projection, Given):
        return projection
    if isinstance(projection, str) and projection == "random":
        return projection
    arrays = [np.asarray(array) for array in projection] if _is_four(projection) else []
    shapes = [list(array.shape) for array in arrays]
    if [len(shape) for shape in shapes] != [2, 1, 2, 1] or not (
        shapes[0][1:] == shapes[1] == shapes[2][:1] and shapes[2][1:] == shapes[3]
    ):
        raise ValueError(
            f"projection is {shapes or repr(projection)}; 'random', None or arrays w1 [D, P], "
            "b1 [P], w2 [P, Q], b2 [Q] are needed"
        )
    return Given(dict(zip(NAMES, arrays, strict=True)))


def _is_four(projection: Any) -> bool:
    return isinstance(projection, tuple | list) and len(projection) == len(NAMES)


def start(projection: Literal["random"] | Given | None, n_features: int, key: Key) -> Tree:
    """The parameters at the start; none for the identity.

    A random one has PyTorch's default: uniform within +-1 / sqrt(fan_in), biases too.

    Raises:
        ValueError: arrays for another number of features.
    """
    if projection is None:
        return {}
    if isinstance(projection, Given):
        if len(projection.arrays["w1"]) != n_features:
            raise ValueError(
                f"projection reads {len(projection.arrays['w1'])} features; the network has "
                f"{n_features}"
            )
        return {name: jnp.asarray(x, jnp.float32) for name, x in projection.arrays.items()}
    shapes = [(n_features, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    bounds = [n_features**-0.5] * 2 + [WIDTH**-0.5] * 2
    return {
        name: jax.random.uniform(fold(key, name), shape, minval=-bound, maxval=bound)
        for name, shape, bound in zip(NAMES, shapes, bounds, strict=True)
    }


def project(projector: Tree, features: jax.Array) -> jax.Array:
    """[..., D] -> [..., Q]."""
    if not projector:
        return features
    hidden = jax.nn.relu(features @ projector["w1"] + projector["b1"])
    return hidden @ projector["w2"] + projector["b2"]
