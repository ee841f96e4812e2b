"""Weights of a comparison's models in files: safetensors, with a leading axis of models."""

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import nn
from jaxunlearn.core import tree
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import Dataset, augment
from jaxunlearn.nn.files import safetensors

_SAYS = "jaxunlearn.comparison"


class Loaded(NamedTuple):
    """A model of a comparison.

    Attributes:
        model: the network; `model.apply(params, stats, x)[0]` gives logits.
        params: parameters.
        stats: statistics of its BatchNorms; empty without any.
    """

    model: Model
    params: Tree
    stats: Tree


def network_for(name: str, multiply_adds: int, dataset: Dataset) -> Model:
    """A network by its name, see `nn.by_name`; images of integers are normalised."""
    return _network(described(name, multiply_adds, dataset))


def default_network(dataset: Dataset) -> str:
    """The name of a network that learns such data as its settings are: photographs, or digits."""
    shape = dataset.x_train.shape[1:]
    is_picture = dataset.x_train.dtype == np.uint8 and len(shape) == 3 and min(shape[:2]) >= 16
    return "small_cnn" if is_picture else "mlp"


def described(name: str, multiply_adds: int, dataset: Dataset) -> dict[str, Any]:
    """All that a network of `nn.by_name` is made of, JSON-like; files of weights keep it."""
    x = dataset.x_train
    return {
        "model": name,
        "shape": list(x.shape[1:]),
        "n_classes": dataset.n_classes,
        "multiply_adds": multiply_adds,
        "statistics": augment.channel_statistics(x) if x.dtype == np.uint8 else None,
        "classes": list(dataset.classes),
    }


def _network(of: dict[str, Any]) -> Model:
    return nn.by_name(
        of["model"],
        tuple(of["shape"]),
        of["n_classes"],
        multiply_adds=of["multiply_adds"],
        statistics=None if of["statistics"] is None else tuple(map(tuple, of["statistics"])),
    )


def save(path: str | os.PathLike, weights: Tree, of: dict[str, Any] | None) -> None:
    """Writes the weights of N models, whole or not at all.

    Args:
        path: the file; its folder is made if need be.
        weights: `params` and `stats`, leading axis the models.
        of: see `described`; None for a network of the caller's own.
    """
    leaves = tree.named({"params": weights["params"], "stats": weights.get("stats", {})})
    layout = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        safetensors.write(file, layout, map(np.asarray, leaves.values()), {_SAYS: json.dumps(of)})


def load(path: str | os.PathLike, member: int | None = 0, *, model: Model | None = None) -> Loaded:
    """Reads weights that `jaxunlearn unlearn --save` wrote; of the file only what is asked for.

    Args:
        path: a file of the folder `weights` of a run.
        member: number of a model, from 0; None: all, stacked along a leading axis, for `jax.vmap`.
        model: the network, where a comparison had one of the caller's own.

    Returns:
        `(model, params, stats)`, so that `model.apply(params, stats, x)[0]` gives the logits of
        images of the kind that the model was trained on: uint8, or floats in [0, 1], [n, H, W, C].

    Raises:
        ValueError: no such file or member, a file of another kind, or tensors that are not the
            network's.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; weights lie in the folder `weights` of a run")
    says = safetensors.metadata(path).get(_SAYS)
    if says is None:
        raise ValueError(f"{path} was not written by `jaxunlearn unlearn --save`")
    model = _described_network(path, says) if model is None else model
    tensors = safetensors.tensors(path)
    shapes = dict(zip(("params", "stats"), _shapes_of(model), strict=True))
    n_models = _checked(path, tensors, tree.named(shapes))
    if member is not None and not 0 <= member < n_models:
        raise ValueError(f"member is {member}; {path} holds 0 to {n_models - 1}")
    index = slice(None) if member is None else member
    read = tree.nested({name: tensor[index] for name, tensor in tensors.items()})
    return Loaded(model, read["params"], read.get("stats", {}))


def _described_network(path: Path, says: str) -> Model:
    try:
        of = json.loads(says)
        if of is not None:
            return _network(of)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{path} describes no network that is known: {error!r}") from error
    raise ValueError(f"{path} holds weights of a network of your own; give it as model")


@functools.cache
def _shapes_of(model: Model) -> tuple[Tree, Tree]:
    return jax.eval_shape(model.init, jax.random.key(0))


def _checked(path: Path, tensors: dict[str, Any], wanted: dict[str, Any]) -> int:
    """The number of models; raises a ValueError unless all tensors are the network's."""
    for name in sorted(tensors.keys() ^ wanted.keys()):
        state = "is missing" if name in wanted else "has no place in this network"
        raise ValueError(f"{path}: {name!r} {state}")
    sizes = {tensor.shape[:1] for tensor in tensors.values()}
    for name, tensor in tensors.items():
        if len(sizes) != 1 or () in sizes or tensor.shape[1:] != wanted[name].shape:
            raise ValueError(
                f"{path}: {name!r} is {list(tensor.shape)}; [models, *{list(wanted[name].shape)}] "
                "is needed"
            )
    (n_models,) = sizes.pop()
    if n_models < 1:
        raise ValueError(f"{path} holds no models")
    return n_models
