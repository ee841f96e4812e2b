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
from jaxunlearn.nn.files.folders import Part, parts, read_json, write_tensors, write_texts
from jaxunlearn.nn.images.vit import Config, build
from jaxunlearn.nn.language import weights
from jaxunlearn.nn.language.config import size_of

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
_COMPUTED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}


def config_from_hugging_face(record: dict[str, Any], n_classes: int | None = None) -> Config:
    """Reads the content of a `config.json`; `n_classes` goes before the number of labels there.

    Raises:
        ValueError: an option that is not computed here, or a size that is missing; it is named.
    """
    for name, only in _COMPUTED.items():
        if record.get(name, only) != only:
            raise ValueError(f"config: {name} is {record[name]!r}; only {only!r} is computed")
    height, width = _sides(record, "image_size")
    patch, across = _sides(record, "patch_size")
    if patch != across:
        raise ValueError(f"config: patch_size is {[patch, across]}; only squares are computed")
    # Defaults are those of transformers, for what a config.json leaves out.
    return Config(
        image=(height, width, size_of({"num_channels": 3} | record, "num_channels")),
        patch=patch,
        width=size_of(record, "hidden_size"),
        n_layers=size_of(record, "num_hidden_layers"),
        n_heads=size_of(record, "num_attention_heads"),
        mlp_width=size_of(record, "intermediate_size"),
        n_classes=_n_labels(record) if n_classes is None else n_classes,
        eps=record.get("layer_norm_eps", 1e-12),
    )


def _sides(record: dict[str, Any], name: str) -> tuple[int, int]:
    match record.get(name):
        case int(side) if side > 0:
            return side, side
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise ValueError(
        f"config: {name} is {record.get(name)!r}; a whole number or two, above 0, are needed"
    )


def _n_labels(record: dict[str, Any]) -> int:
    if record.get("id2label"):
        return len(record["id2label"])
    if "num_labels" in record:
        return size_of(record, "num_labels")
    if "ViTForImageClassification" in (record.get("architectures") or ()):
        return 2  # the number of labels that transformers leaves out
    raise ValueError("config: id2label is missing, and so is num_labels; n_classes is needed")


def read(
    path: Any, n_classes: int | None = None, dtype: Any = jnp.float32, seed: int = 0
) -> tuple[Config, Tree]:
    """See `vit.from_pretrained`; `seed` draws the head where it is new."""
    path, dtype = Path(path), np.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype is {dtype}; a float type that JAX is set up for is needed")
    if not (path / "config.json").is_file():
        raise ValueError(f"path is {str(path)!r}; a folder with config.json is needed")
    try:
        config = config_from_hugging_face(read_json(path / "config.json"), n_classes)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
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


def normalisation(path: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """See `vit.normalisation`."""
    file = Path(path) / "preprocessor_config.json"
    record = read_json(file) if file.is_file() else {}
    factor = record.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, float) and abs(factor * 255 - 1) < 1e-4  # as its writer wrote it
    if record.get("do_rescale", True) is not True or not is_usual:
        raise ValueError(f"{file}: only images rescaled by 1/255 are read")
    if not record.get("do_normalize", True):
        return (0.0,), (1.0,)
    found = {name: record.get(name, [0.5]) for name in ("image_mean", "image_std")}
    try:
        mean, std = (tuple(map(float, np.atleast_1d(one))) for one in found.values())
        if len(mean) != len(std) or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError("not as many, not finite, or not above 0")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {found}; a number or one for each channel needed") from error
    return mean, std


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
    record = json.dumps(_to_hugging_face(config, own[0].dtype.name), indent=2)
    with mesh.together():
        if mesh.is_first():
            write_texts(path, {"config.json": record})


def _to_hugging_face(config: Config, dtype: str) -> dict[str, Any]:
    height, width, channels = config.image
    labels = {i: f"LABEL_{i}" for i in range(config.n_classes)}
    return _COMPUTED | {
        "architectures": ["ViTForImageClassification"],
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
        "torch_dtype": dtype,
    }


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
