"""Weights from files, by a network's table: every tensor fits and has its place, or it is named.

Tensors go straight into our layout, slice by slice: in memory are the result and at most one more
leaf of it. Over a mesh each process reads only its part.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files.tables import Place, Table


class Tensor(Protocol):
    """A tensor in a file; indexing reads what is asked for, as `numpy` would."""

    @property
    def file(self) -> Path:
        """The file it lies in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Its type in the file."""
        ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@functools.cache
def shapes_of(model: Model) -> Tree:
    """The parameters of a network as `ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0))[0])


def float_type(dtype: Any) -> np.dtype:
    """A type that weights can have in memory.

    Raises:
        ValueError: no type of floats, or float64 where JAX computes in float32.
    """
    dtype = np.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype is {dtype}; a float type that JAX is set up for is needed")
    return dtype


def read(
    path: Path,
    tensors: Mapping[str, Tensor],
    table: Table,
    shapes: Tree,
    dtype: np.dtype | None,
    shardings: Tree | None = None,
) -> Tree:
    """The parameters of a network.

    Args:
        path: folder or file of the tensors, for messages.
        tensors: by their names in files.
        table: where the leaves lie among them.
        shapes: parameters as `ShapeDtypeStruct`s.
        dtype: type of the weights in memory; None keeps the files'.
        shardings: how leaves are laid over a mesh; None for one device.

    Raises:
        ValueError: tensors that are missing, left over or of another shape; they are named.
    """
    leaves = tree.named(shapes)
    layouts = {} if shardings is None else tree.named(shardings)
    out: dict[str, Any] = {}
    for place, stored in _matched(path, tensors, table, leaves):
        kind = dtype or np.result_type(*(tensor.dtype for tensor in stored))
        shape = leaves[place.leaf].shape
        block = read_blocks(place, stored, shape, kind)
        if (layout := layouts.get(place.leaf)) is not None:
            out[place.leaf] = jax.make_array_from_callback(shape, layout, block, dtype=kind)
        else:
            out[place.leaf] = jnp.asarray(block(None))
    return jax.tree.unflatten(jax.tree.structure(shapes), [out[leaf] for leaf in leaves])


def _matched(
    path: Path, tensors: Mapping[str, Tensor], table: Table, leaves: Mapping[str, Any]
) -> list[tuple[Place, list[Tensor]]]:
    """The tensors of each leaf, each of which is there and has its shape, and none is left."""
    rest = {name: it for name, it in tensors.items() if not re.fullmatch(table.ignore, name)}
    for leaf, like in leaves.items():  # before the tensors of so many layers are listed
        if "{}" in table.tensor(leaf)[1] and like.shape[0] > len(rest):
            raise ValueError(
                f"{path}: the network has {like.shape[0]} layers, the file {len(rest)} tensors"
            )
    is_bare = not any(name.startswith(table.prefix) for name in rest)
    matched, taken = [], set()
    for place in table.places(leaves):
        names = [name.removeprefix(table.prefix) if is_bare else name for name in place.tensors]
        missing = [name for name in names if name not in rest]
        if missing:
            others = f" (and {len(missing) - 1} like it)" if len(missing) > 1 else ""
            raise ValueError(f"{path}: tensor {missing[0]!r}{others} for {place.leaf!r} is missing")
        for name in names:
            if tuple(rest[name].shape) != place.of:
                raise ValueError(
                    f"{rest[name].file}: tensor {name!r} has shape {list(rest[name].shape)}; "
                    f"{list(place.of)} is needed for {place.leaf!r}"
                )
        matched.append((place, [rest[name] for name in names]))
        taken.update(names)
    if left := sorted(rest.keys() - taken):
        others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        file = rest[left[0]].file
        raise ValueError(f"{file}: tensor {left[0]!r}{others} has no place in this network")
    return matched


def read_blocks(
    place: Place, tensors: Sequence[Tensor], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    """Reads any block of a leaf, or all of it; one that several devices share is read once."""
    known: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        bounds = tuple(axis.indices(size) for axis, size in zip(index, shape, strict=True))
        if bounds not in known:
            index = tuple(slice(*axis) for axis in bounds)
            out = known[bounds] = np.empty([len(range(*axis)) for axis in bounds], dtype)
            if place.is_stacked:
                for layer, tensor in enumerate(tensors[index[0]]):
                    out[layer, ...] = place.cut(tensor, index[1:])
            else:
                out[...] = place.cut(tensors[0], index)
        return known[bounds]

    return block
