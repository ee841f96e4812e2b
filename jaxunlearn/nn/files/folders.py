"""What the folders of models and of adapters share: writing texts and tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.core import mesh
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import safetensors


def write_texts(path: Path, texts: dict[str, str]) -> None:
    """Writes small files into a folder, which is made if it is not there, in the order given."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replacing(path / name) as file:
            file.write(text.encode())


def kernels(params: Tree) -> dict[str, Any]:
    """Leaves by name; an adapter with all below it counts as the one leaf it stands for."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_adapter)
    return {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in flat}


def with_kernels(params: Tree, leaves: dict[str, Any]) -> Tree:
    """The tree with other leaves: the inverse of `kernels`."""
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=_is_adapter), leaves.values())


def _is_adapter(leaf: Any) -> bool:
    return isinstance(leaf, LowRank)


class Part(NamedTuple):
    """A tensor to write: one layer of a leaf, or the whole leaf, [in, out] turned to [out, in]."""

    tensor: str
    leaf: str
    layer: int | None
    turned: bool
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parts(name: str, leaf: Any, tensors: list[str], *, turned: bool) -> list[Part]:
    """What a leaf is written as: tensors with these names, one per layer if it is stacked.

    Raises:
        ValueError: a type that the files do not hold.
    """
    stacked = name.startswith("layers/")
    shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
    shape = shape[::-1] if turned else shape
    dtype = safetensors.writable(leaf.dtype, name)
    return [
        Part(tensor, name, layer if stacked else None, turned, shape, dtype)
        for layer, tensor in enumerate(tensors)
    ]


def write_tensors(file: Path, own: list[Part], leaves: dict[str, Any]) -> None:
    """Writes a safetensors file; all processes call it, and the first writes.

    Args:
        file: its folder is made if it is not there.
        own: what it holds; parts of one leaf follow each other.
        leaves: by the names that the parts have; adapters are merged.
    """
    arrays = _on_host(own, leaves)
    with mesh.together():
        if not mesh.is_first():
            list(arrays)  # leaves are gathered by all processes together
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(file) as opened:
                safetensors.write(
                    opened, {one.tensor: (one.shape, one.dtype) for one in own}, arrays
                )
        except OSError:
            if jax.process_count() > 1:
                list(arrays)  # the others still gather
            raise


def _on_host(own: list[Part], leaves: dict[str, Any]) -> Iterator[np.ndarray]:
    name, value = "", np.zeros(0)  # one leaf at a time is held
    for part in own:
        if part.leaf != name:
            del value
            leaf = leaves[part.leaf]
            leaf = leaf.dense() if isinstance(leaf, LowRank) else leaf
            name, value = part.leaf, np.asarray(mesh.gather(leaf))
        piece = value if part.layer is None else value[part.layer]
        yield piece.T if part.turned else piece
