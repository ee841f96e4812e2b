"""Weights into files, by a network's table: the inverse of `reader`, one leaf at a time."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.core import mesh, tree
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.files.folder import index_file, weight_file
from jaxunlearn.nn.files.tables import Place, Table


def kernels(params: Tree) -> dict[str, Any]:
    """Leaves by name; an adapter with all below it counts as the one leaf it stands for."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_adapter)
    return {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in flat}


def with_kernels(params: Tree, leaves: dict[str, Any]) -> Tree:
    """The tree with other leaves: the inverse of `kernels`."""
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=_is_adapter), leaves.values())


def _is_adapter(leaf: Any) -> bool:
    return isinstance(leaf, LowRank)


def checked(params: Tree, shapes: Tree) -> dict[str, Any]:
    """The `kernels` of parameters that are a network's.

    Raises:
        ValueError: a leaf that is missing, left over or of another shape; it is named.
    """
    leaves, wanted = kernels(params), tree.named(shapes)
    for name in sorted(leaves.keys() ^ wanted.keys()):
        state = "is missing" if name in wanted else "has no place in this network"
        raise ValueError(f"params: {name!r} {state}")
    for name, leaf in leaves.items():
        if tuple(leaf.shape) != wanted[name].shape:
            raise ValueError(
                f"params: {name!r} has shape {list(leaf.shape)}; the config has "
                f"{list(wanted[name].shape)}"
            )
    return leaves


class _Tensor(NamedTuple):
    """A tensor to write: one layer of places that follow each other along its first axis."""

    name: str
    places: list[Place]
    layer: int
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.places[0].of) * self.dtype.itemsize


def save(
    path: Path,
    leaves: Mapping[str, Any],
    table: Table,
    texts: Mapping[str, str | None],
    *,
    stem: str = "model",
    max_shard_bytes: float = math.inf,
) -> None:
    """Writes a folder of weights, as `folder.tensors` reads it; adapters are merged.

    Each file appears whole or not at all, and earlier weights of the same stem are replaced. The
    folder is made if need be. Of several processes all call it, and the first writes.

    Args:
        path: the folder.
        leaves: by name, see `kernels`.
        table: where they lie.
        texts: other files by name, written after the weights and in this order; None removes one.
        stem: start of the names of the files of weights.
        max_shard_bytes: largest file of weights; only a single larger tensor exceeds it.

    Raises:
        ValueError: a leaf of a type that safetensors files of this module do not hold.
    """
    tensors = _tensors(leaves, table)
    shards = _sharded(tensors, stem, max_shard_bytes)
    for file, shard in shards.items():
        _write(path / file, shard, leaves)
    index: dict[str, str | None] = {weight_file(stem): None, index_file(stem): None}
    if len(shards) > 1:
        file_of = {tensor.name: file for file, shard in shards.items() for tensor in shard}
        size = sum(tensor.n_bytes for tensor in tensors)
        record = {"metadata": {"total_size": size}, "weight_map": file_of}
        index[index_file(stem)] = json.dumps(record, indent=2)
    with mesh.together():
        if not mesh.is_first():
            return
        old = [file.name for file in path.glob(f"{stem}-*-of-*.safetensors")]
        texts = dict.fromkeys(old) | index | dict(texts)
        for name, text in texts.items():
            if text is not None:
                with replacing(path / name) as opened:
                    opened.write(text.encode())
        for name in texts.keys() - shards.keys():
            if texts[name] is None:
                (path / name).unlink(missing_ok=True)


def _tensors(leaves: Mapping[str, Any], table: Table) -> list[_Tensor]:
    tensors = []
    for names, group in itertools.groupby(table.places(leaves), lambda place: place.tensors):
        places = list(group)
        types = {safetensors.writable(leaves[one.leaf].dtype, one.leaf) for one in places}
        if len(types) > 1:
            leaf_names = ", ".join(place.leaf for place in places)
            raise ValueError(f"{leaf_names} are {types}; one tensor of a file has one type")
        tensors += [_Tensor(name, places, i, *types) for i, name in enumerate(names)]
    return tensors


def _sharded(tensors: list[_Tensor], stem: str, most: float) -> dict[str, list[_Tensor]]:
    """Files of at most so many bytes, by name."""
    shards: list[list[_Tensor]] = [[]]
    taken = 0
    for tensor in tensors:
        if shards[-1] and taken + tensor.n_bytes > most:
            shards.append([])
            taken = 0
        shards[-1].append(tensor)
        taken += tensor.n_bytes
    if len(shards) == 1:
        return {weight_file(stem): tensors}
    n = len(shards)
    return {f"{stem}-{i:05}-of-{n:05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write(file: Path, tensors: list[_Tensor], leaves: Mapping[str, Any]) -> None:
    """Writes a safetensors file; all processes call it, and the first writes."""
    arrays = _on_host(tensors, leaves)
    with mesh.together():
        if not mesh.is_first():
            list(arrays)  # leaves are gathered by all processes together
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        layout = {tensor.name: (tensor.places[0].of, tensor.dtype) for tensor in tensors}
        try:
            with replacing(file) as opened:
                safetensors.write(opened, layout, arrays)
        except OSError:
            if jax.process_count() > 1:
                list(arrays)  # the others still gather
            raise


def _on_host(tensors: Iterable[_Tensor], leaves: Mapping[str, Any]) -> Iterator[np.ndarray]:
    values: list[np.ndarray] = []  # the leaves of one tensor at a time are held
    for tensor in tensors:
        if tensor.layer == 0 or not values:
            values.clear()
            for leaf in (leaves[place.leaf] for place in tensor.places):
                dense = leaf.dense() if isinstance(leaf, LowRank) else leaf
                values.append(np.asarray(mesh.gather(dense)))
        pieces = [
            place.form.to_file(value[tensor.layer] if place.is_stacked else value)
            for place, value in zip(tensor.places, values, strict=True)
        ]
        yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
