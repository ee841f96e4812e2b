"""Trained networks in files: safetensors in float32 or int8, and a portable program."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.compact.architecture import Architecture
from jaxunlearn.core import tree
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.model import Model
from jaxunlearn.core.readers import parse_json, reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn import plain_convolutions
from jaxunlearn.nn.files import safetensors

_SAYS = "jaxunlearn.compact"
_SCALE = ".scale"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Loaded(NamedTuple):
    """What a file holds."""

    architecture: Architecture
    params: Tree


def save(
    path: str | os.PathLike, architecture: Architecture, params: Tree, *, int8: bool = False
) -> None:
    """Writes a network as safetensors, whole or not at all; its names are those of the parameters.

    Args:
        path: the file.
        architecture: kept in the file's metadata.
        params: parameters of one model.
        int8: kernels as whole numbers from -127 to 127, with one scale (`NAME.scale`) for each
            output; biases stay float32.

    Raises:
        ValueError: parameters of other shapes than the architecture has; nothing is written.
    """
    _check(f"params, for {path}", architecture, tree.named(params))
    leaves = {name: np.asarray(leaf) for name, leaf in tree.named(params).items()}
    if int8:
        leaves = _quantised(leaves)
    layout = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    says = {_SAYS: json.dumps(dataclasses.asdict(architecture))}
    with replacing(path) as file:
        safetensors.write(file, layout, leaves.values(), says)


def load(path: str | os.PathLike) -> Loaded:
    """Reads what `save` wrote; int8 kernels become float32.

    Raises:
        ValueError: no such file, one of another kind, or with tensors of other shapes than its
            network has.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    says = safetensors.metadata(path).get(_SAYS)
    if says is None:
        raise ValueError(f"{path} is a safetensors file, but not of `jaxunlearn compact`")
    with reading(f"{path} describes no network that is known"):
        architecture = Architecture.of_json(parse_json(says, _SAYS))
        _ = jax.eval_shape(architecture.model.init, jax.random.key(0))
    with reading(path):
        tensors = safetensors.tensors(path, quantised=True)
        leaves = _dequantised(path, {name: tensor[...] for name, tensor in tensors.items()})
        _check(str(path), architecture, leaves)
        return Loaded(architecture, tree.nested(leaves))


def export(model: Model, params: Tree, input_shape: tuple[int, int, int]) -> bytes:
    """A network with its weights as a portable StableHLO program, for CPU, CUDA, ROCm and TPU.

    It takes float32 images in [0, 1], [b, H, W, C] with any b, and returns logits. Read it with
    `jax.export.deserialize(content).call`, without this package. The same network gives the same
    bytes, in which no place of this machine's files is.
    """
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
    # What every backend makes the best of by itself; a CPU's XLA is slow at depthwise ones.
    with plain_convolutions(depthwise=False), _without_places():
        program = jax.jit(lambda x: model.apply(params, {}, x)[0])
        return bytes(jax.export.export(program, platforms=PLATFORMS)(shape).serialize())


def readers(program: bytes) -> dict[str, Any]:
    """What made an exported program, and which versions read it.

    Returns:
        `jax` and `jaxlib`, `platforms`, the `calling_convention` that it follows, those
        `calling_conventions_read` by this version (first and last), and `months`, for how long
        later releases read it, as `jax.export` guarantees.
    """
    exported = jax.export.deserialize(bytearray(program))
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "calling_conventions_read": [
            jax.export.minimum_supported_calling_convention_version,
            jax.export.maximum_supported_calling_convention_version,
        ],
        "months": 6,
    }


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Programs that do not say by which lines of which files they were made."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _check(what: str, architecture: Architecture, leaves: dict[str, Any]) -> None:
    """Raises a ValueError unless these are finite parameters of one model."""
    like, _ = jax.eval_shape(architecture.model.init, jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in tree.named(like).items()}
    for name in {**wanted, **leaves}:
        shape = np.shape(leaves[name]) if name in leaves else None
        if shape != wanted.get(name):
            raise ValueError(
                f"{what}: {name} is {_described(shape)}; the network, of images "
                f"{list(architecture.input_shape)}, has {_described(wanted.get(name))}"
            )
        if not np.isfinite(leaves[name]).all():
            raise ValueError(f"{what}: {name} has numbers that are not finite")


def _quantised(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        if leaf.ndim == 1:
            out[name] = leaf
            continue
        scale = np.abs(leaf).max(axis=tuple(range(leaf.ndim - 1))) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        out[name] = np.round(leaf / scale).astype(np.int8)
        out[name + _SCALE] = scale
    return out


def _dequantised(path: Path, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In float32; scales are taken with what they are for."""
    out = {}
    for name, array in stored.items():
        of = name.removesuffix(_SCALE)
        if of != name and of in stored and stored[of].dtype == np.int8:
            continue
        if array.dtype != np.int8:
            out[name] = array.astype(np.float32)
            continue
        scale = stored.get(name + _SCALE)
        if scale is None or scale.shape != array.shape[-1:]:
            shape = _described(None if scale is None else scale.shape)
            raise ValueError(
                f"{path}: {name} is int8 {list(array.shape)}, but {name + _SCALE} is {shape}"
            )
        out[name] = array * scale
    return out


def _described(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
