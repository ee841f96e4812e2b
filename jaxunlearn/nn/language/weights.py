"""Weights of decoders in files: Hugging Face folders, GGUF files, and PEFT's adapters.

No file is ever unpickled. Tensors go straight into the stacked, transposed layout of
`nn.decoder`, slice by slice: in memory are the result and at most one more leaf of it.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import mesh as meshes
from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import gguf as _gguf
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.files.configs import read_json
from jaxunlearn.nn.files.folders import Part, kernels, parts, write_tensors, write_texts
from jaxunlearn.nn.files.peft import load_adapter, save_adapter
from jaxunlearn.nn.language import decoder
from jaxunlearn.nn.language import tokenizers as _tokenizers
from jaxunlearn.nn.language.config import to_hugging_face
from jaxunlearn.nn.language.pretrained import opened
from jaxunlearn.nn.language.tensor_names import in_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["load_adapter", "read", "save", "save_adapter"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_Tensor = safetensors.Stored | _gguf.Packed


def read(
    path: str | os.PathLike, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> decoder.Pretrained:
    """See `decoder.from_pretrained`.

    - A Hugging Face folder has `config.json`, `model.safetensors` or several files and
      `model.safetensors.index.json`, and perhaps `tokenizer.json`.
    - A `.gguf` file of the architectures llama, qwen2 and qwen3 holds all of it; quantised weights
      are dequantised. The package `gguf` is needed.
    - The tokenizer encodes as the original does, with the token that begins a text where that adds
      one (Llama 2 and 3); `encode(text, add_special_tokens=False)` leaves it out. It neither pads
      nor truncates. The package `tokenizers` is needed.
    - A tied network's output layer that is stored all the same must equal the embedding.

    Raises:
        ValueError: see `decoder.from_pretrained`.
        ImportError: a package is needed that is not installed.
    """
    dtype = np.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype is {dtype}; a float type that JAX is set up for is needed")
    source = opened(path)
    config, path = source.config, source.path
    tensors = _folder(path) if source.gguf is None else source.gguf[0]
    own = _match(path, config, tensors, gguf=source.gguf is not None)
    tokenizer, chat_template = source.tokenizer()
    params = _load(config, own, dtype, mesh)  # last, the longest
    return decoder.Pretrained(config, params, tokenizer, chat_template)


def _folder(path: Path) -> Mapping[str, _Tensor]:
    names = sorted(file.name for file in path.iterdir())
    if SINGLE in names:
        return safetensors.tensors(path / SINGLE)
    if INDEX in names:
        return shard_tensors(path)
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        raise ValueError(
            f"{path} has only pickled weights ({pickled[0]}), which could run any code when they "
            "are read; convert them to safetensors first"
        )
    raise ValueError(f"{path} has no weights: neither {SINGLE} nor {INDEX}")


def shard_tensors(path: Path) -> dict[str, _Tensor]:
    where = read_json(path / INDEX).get("weight_map")
    if not isinstance(where, dict):
        raise ValueError(f"{path / INDEX}: it has no weight_map")
    tensors: dict[str, _Tensor] = {}
    for file in sorted(set(where.values())):
        if not (path / file).is_file():
            raise ValueError(f"{path / INDEX}: the file {file!r} that it names is not there")
        tensors |= safetensors.tensors(path / file)
    for name, file in where.items():
        if name not in tensors:
            raise ValueError(f"{path / file}: tensor {name!r} is missing")
    return tensors


@functools.cache
def _shapes(config: decoder.Config) -> Tree:
    """The parameters as `ShapeDtypeStruct`s."""
    init = decoder.decoder(config).init
    return jax.eval_shape(lambda: init(jax.random.key(0))[0])


def _match(
    path: Path, config: decoder.Config, tensors: Mapping[str, _Tensor], *, gguf: bool
) -> dict[str, list[_Tensor]]:
    """The tensors of each leaf, each of which is there and has its shape, and none is left."""
    rest = {name: it for name, it in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    own: dict[str, list[_Tensor]] = {}
    for leaf, like in tree.named(_shapes(config)).items():
        names = in_files(leaf, config.n_layers, gguf=gguf)
        missing = [name for name in names if name not in rest]
        if missing:
            others = f" (and {len(missing) - 1} like it)" if len(missing) > 1 else ""
            raise ValueError(f"{path}: tensor {missing[0]!r}{others} is missing")
        own[leaf] = [rest.pop(name) for name in names]
        shape = tuple(like.shape[1:] if leaf.startswith("layers/") else like.shape)
        shape = shape[::-1] if leaf.endswith("/kernel") else shape
        for name, tensor in zip(names, own[leaf], strict=True):
            if tensor.shape != shape:
                raise ValueError(
                    f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; "
                    f"{list(shape)} is needed"
                )
    if config.tied and "lm_head.weight" in rest:
        _check_tied(rest.pop("lm_head.weight"), own["embed/table"][0])
    if rest:
        name = min(rest)
        others = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
        raise ValueError(f"{rest[name].file}: tensor {name!r}{others} has no place in this network")
    return own


def _check_tied(head: _Tensor, embedding: _Tensor) -> None:
    step = 4096
    if head.shape != embedding.shape or any(
        np.any(head[at : at + step] != embedding[at : at + step])
        for at in range(0, head.shape[0], step)
    ):
        raise ValueError(
            f"{head.file}: tensor 'lm_head.weight' is not the embedding, but config.json has "
            "tie_word_embeddings; make that false to use both"
        )


def _load(
    config: decoder.Config, own: dict[str, list[_Tensor]], dtype: np.dtype, mesh: Mesh | None
) -> Tree:
    shapes = _shapes(config)
    layout = [None] * len(own) if mesh is None else jax.tree.leaves(decoder.shardings(shapes, mesh))
    leaves = []
    for (leaf, like), sharding in zip(tree.named(shapes).items(), layout, strict=True):
        part = _reader(leaf, own[leaf], like.shape, dtype)
        if sharding is None:
            leaves.append(jnp.asarray(part(None)))
        else:
            leaves.append(jax.make_array_from_callback(like.shape, sharding, part, dtype=dtype))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _reader(
    leaf: str, tensors: list[_Tensor], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    """Reads any block of a leaf; one that several devices share is read once."""
    known: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        bounds = tuple(axis.indices(size) for axis, size in zip(index, shape, strict=True))
        if bounds not in known:
            known[bounds] = block(bounds)
        return known[bounds]

    def block(bounds: tuple[tuple[int, int, int], ...]) -> np.ndarray:
        stacked = leaf.startswith("layers/")
        own = tensors[slice(*bounds[0])] if stacked else tensors
        inner = tuple(slice(*axis) for axis in (bounds[1:] if stacked else bounds))
        turned = leaf.endswith("/kernel")
        sizes = [len(range(*axis)) for axis in bounds]
        out = np.empty(sizes, dtype)
        for target, tensor in zip(out if stacked else [out], own, strict=True):
            piece = tensor[inner[::-1] if turned else inner]
            target[...] = piece.T if turned else piece
        return out

    return part


def save(
    path: str | os.PathLike,
    config: decoder.Config,
    params: Tree,
    *,
    tokenizer: "Tokenizer | None" = None,
    chat_template: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a Hugging Face folder that `from_pretrained` and transformers read.

    - Adapters are merged into the kernels below them; every leaf keeps its type, and what
      `from_pretrained` then reads in that type is the same bits.
    - Each file appears whole or not at all; weights of an earlier `save` are replaced.
    - Of several processes all call it, and the first writes.

    Args:
        path: the folder; it is made if it is not there.
        config: of the network.
        params: with or without adapters.
        tokenizer: written as `tokenizer.json` if given.
        chat_template: written beside the tokenizer.
        max_shard_bytes: largest file of weights; only a single larger tensor exceeds it.

    Raises:
        ValueError: parameters that are not this network's; a leaf of a type that safetensors files
            of this module do not hold; a config that `config.json` cannot express.
    """
    path = Path(path)
    leaves = kernels(params)
    _check(config, leaves)
    hub = to_hugging_face(config, np.dtype(leaves["embed/table"].dtype).name)
    if decoder.from_hugging_face(hub) != config:
        raise ValueError(f"config is {config}, for which config.json has no form")
    own = [
        part
        for name, leaf in leaves.items()
        for part in parts(
            name, leaf, in_files(name, config.n_layers), turned=name.endswith("/kernel")
        )
    ]
    shards = _split(own, max_shard_bytes)
    for file, shard in shards.items():
        write_tensors(path / file, shard, leaves)
    end = config.eos[0] if config.eos else None
    texts = _tokenizers.files(tokenizer, chat_template, config.bos, end)
    if len(shards) > 1:
        where = {part.tensor: file for file, shard in shards.items() for part in shard}
        size = sum(part.n_bytes for part in own)
        index = {"metadata": {"total_size": size}, "weight_map": where}
        texts[INDEX] = json.dumps(index, indent=2)
    texts["config.json"] = json.dumps(hub, indent=2)  # last: the folder is now complete
    with meshes.together():
        if meshes.is_first():
            write_texts(path, texts)
            stale = {SINGLE, INDEX, *(file.name for file in path.glob(_SHARDS))}
            if tokenizer is not None:
                stale |= {"chat_template.jinja"}  # it would go before the template written here
            for name in stale - {*shards, *texts}:
                (path / name).unlink(missing_ok=True)


def _check(config: decoder.Config, leaves: dict[str, Any]) -> None:
    wanted = tree.named(_shapes(config))
    for name in sorted(set(leaves) ^ set(wanted)):
        state = "is missing" if name in wanted else "has no place in this network"
        raise ValueError(f"params: {name!r} {state}")
    for name, leaf in leaves.items():
        if tuple(leaf.shape) != wanted[name].shape:
            raise ValueError(
                f"params: {name!r} has shape {list(leaf.shape)}; the config has "
                f"{list(wanted[name].shape)}"
            )


def _split(own: list[Part], most: int) -> dict[str, list[Part]]:
    """Files of at most so many bytes, by name."""
    shards: list[list[Part]] = [[]]
    taken = 0
    for part in own:
        if shards[-1] and taken + part.n_bytes > most:
            shards.append([])
            taken = 0
        shards[-1].append(part)
        taken += part.n_bytes
    if len(shards) == 1:
        return {SINGLE: own}
    return {
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)
    }
