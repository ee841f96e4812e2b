"""Vision Transformers in Hugging Face's folders: the names and layouts that every version writes.

A convolution [D, C, P, P] cuts the patches there; here a kernel [P P C, D] multiplies them.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import adapters, mesh, tree
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.files.folders import Part, parts, write_tensors, write_texts
from jaxunlearn.nn.images.vit import build
from jaxunlearn.nn.images.vit_config import Config, read_config, to_hugging_face
from jaxunlearn.nn.language import weights

_NAMES = {
    "embed/cls": "vit.embeddings.cls_token",
    "embed/positions": "vit.embeddings.position_embeddings",
    "embed/patch": "vit.embeddings.patch_embeddings.projection",
    "layers/attention_norm": "vit.encoder.layer.{}.layernorm_before",
    "layers/q": "vit.encoder.layer.{}.attention.attention.query",
    "layers/k": "vit.encoder.layer.{}.attention.attention.key",
    "layers/v": "vit.encoder.layer.{}.attention.attention.value",
    "layers/o": "vit.encoder.layer.{}.attention.output.dense",
    "layers/mlp_norm": "vit.encoder.layer.{}.layernorm_after",
    "layers/up": "vit.encoder.layer.{}.intermediate.dense",
    "layers/down": "vit.encoder.layer.{}.output.dense",
    "norm": "vit.layernorm",
    "head": "classifier",
}


def read(
    path: Any, n_classes: int | None = None, dtype: Any = jnp.float32, seed: int = 0
) -> tuple[Config, Tree]:
    """See `vit.from_pretrained`; `seed` draws the head where it is new."""
    path, dtype = Path(path), np.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype is {dtype}; a float type that JAX is set up for is needed")
    config = read_config(path, n_classes)
    tensors = _tensors(path)
    head = tensors.get("classifier.weight")
    new = head is None or (n_classes is not None and head.shape[:1] != (n_classes,))
    shapes = dict(_shapes(config))
    if new:
        tensors = {name: one for name, one in tensors.items() if not name.startswith("classifier.")}
        del shapes["head"]
    params = _load(path, config, shapes, tensors, dtype)
    if new:
        drawn = jax.jit(lambda key: build(config).init(key)[0]["head"])(jax.random.key(seed))
        params["head"] = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)
    return config, params


def write(path: Any, config: Config, params: Tree) -> None:
    """See `vit.save_pretrained`."""
    path, params = Path(path), adapters.merge(params)
    given, wanted = (
        {name: leaf.shape for name, leaf in tree.named(of).items()}
        for of in (params, _shapes(config))
    )
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            state, need = given.get(name, "missing"), wanted.get(name, "no such leaf")
            raise ValueError(f"params: {name!r} is {state}; the config has {need}")
    leaves = tree.named(params | {"embed": _to_file(config, params["embed"])})
    own = _parts(config, leaves)
    write_tensors(path / weights.SINGLE, own, leaves)
    record = json.dumps(to_hugging_face(config, own[0].dtype.name), indent=2)
    with mesh.together():
        if mesh.is_first():
            write_texts(path, {"config.json": record})


def _to_file(config: Config, embed: Tree) -> Tree:
    kernel = embed["patch"]["kernel"]
    kernel = kernel.reshape(config.patch, config.patch, -1, config.width).transpose(3, 2, 0, 1)
    own = {"cls": embed["cls"][None, None], "positions": embed["positions"][None]}
    return own | {"patch": embed["patch"] | {"kernel": kernel}}


def _from_file(embed: Tree) -> Tree:
    kernel = embed["patch"]["kernel"]
    kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
    own = {"cls": embed["cls"][0, 0], "positions": embed["positions"][0]}
    return own | {"patch": embed["patch"] | {"kernel": kernel}}


@functools.cache
def _shapes(config: Config) -> Tree:
    """The parameters as `ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: build(config).init(jax.random.key(0))[0])


def _parts(config: Config, leaves: dict[str, Any]) -> list[Part]:
    """The tensors that leaves are stored as; those of the embedding have the file's layout."""
    own = []
    for name, leaf in leaves.items():
        stem, _, end = name.rpartition("/")
        tensor = _NAMES.get(name) or f"{_NAMES[stem]}.{'bias' if end == 'bias' else 'weight'}"
        count = config.n_layers if name.startswith("layers/") else 1
        turned = end == "kernel" and stem != "embed/patch"
        own += parts(name, leaf, [tensor.format(i) for i in range(count)], turned=turned)
    return own


def _tensors(path: Path) -> Mapping[str, Any]:
    if (path / weights.SINGLE).is_file():
        return safetensors.tensors(path / weights.SINGLE)
    if (path / weights.INDEX).is_file():
        return weights.shard_tensors(path)
    raise ValueError(f"{path} has no weights: neither {weights.SINGLE} nor {weights.INDEX}")


def _load(
    path: Path,
    config: Config,
    shapes: dict[str, Any],
    tensors: Mapping[str, Any],
    dtype: np.dtype,
) -> Tree:
    """The parameters, each tensor of which is there and has its shape, and none is left."""
    embed = jax.eval_shape(functools.partial(_to_file, config), shapes["embed"])
    leaves = tree.named(shapes | {"embed": embed})
    out = {name: np.empty(leaf.shape, dtype) for name, leaf in leaves.items()}
    bare = not any(name.startswith("vit.") for name in tensors)  # as `ViTModel` writes them
    rest = {name: it for name, it in tensors.items() if not re.match(r"(vit\.)?pooler\.", name)}
    for part in _parts(config, leaves):
        name = part.tensor.removeprefix("vit.") if bare else part.tensor
        if name not in rest:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        tensor = rest.pop(name)
        if tensor.shape != part.shape:
            raise ValueError(
                f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; "
                f"{list(part.shape)} is needed"
            )
        value = tensor[...].T if part.turned else tensor[...]
        out[part.leaf][... if part.layer is None else part.layer] = value
    if rest:
        raise ValueError(
            f"{rest[min(rest)].file}: tensor {min(rest)!r} has no place in this network"
        )
    params = tree.nested(out)
    return jax.tree.map(jnp.asarray, params | {"embed": _from_file(params["embed"])})
