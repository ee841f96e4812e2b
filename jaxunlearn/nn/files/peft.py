"""LoRA adapters in files, as PEFT writes and reads them."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import mesh
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.files.configs import read_json
from jaxunlearn.nn.files.folders import (
    kernels,
    parts,
    with_kernels,
    write_tensors,
    write_texts,
)
from jaxunlearn.nn.language.tensor_names import in_adapters, in_files

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What the config may ask for; anything else is another computation.
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
_PARTIAL = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")


def save_adapter(
    path: str | os.PathLike, params: Tree, *, base: str = "", rank_stabilized: bool = False
) -> None:
    """Writes the outermost adapters as PEFT does: a folder with one file of weights and a config.

    Adapters below the outermost ones belong to the base that this file is for. Of several processes
    all call it, and the first writes.

    Args:
        path: the folder; it is made if it is not there.
        params: with adapters, all of one rank and one scale.
        base: name or path of the base, noted in the config.
        rank_stabilized: the scale is alpha / sqrt(r), not alpha / r.

    Raises:
        ValueError: no adapters, or several ranks or scales, as where a layer is switched off.
    """
    path = Path(path)
    own = {name: leaf for name, leaf in kernels(params).items() if isinstance(leaf, LowRank)}
    if not own:
        raise ValueError("params has no adapters; core.adapters.attach puts some on")
    first, adapter = next(iter(own.items()))
    rank, scale = adapter.lora_a.shape[-1], np.ravel(mesh.gather(adapter.scale))[0]
    matrices, written = {}, []
    for name, leaf in own.items():
        scales = np.unique(mesh.gather(leaf.scale))
        if leaf.lora_a.shape[-1] != rank or scales.size != 1 or scales[0] != scale:
            raise ValueError(
                f"params: {name!r} has rank {leaf.lora_a.shape[-1]} and scale "
                f"{', '.join(map(str, scales))}; {first!r} has {rank} and {scale}, and a file "
                "holds one of each"
            )
        for letter, matrix in {"A": leaf.lora_a, "B": leaf.lora_b}.items():
            tensors = in_adapters(name, len(matrix), letter)
            matrices[f"{name}/{letter}"] = matrix
            written += parts(f"{name}/{letter}", matrix, tensors, turned=True)
    write_tensors(path / _WEIGHTS, written, matrices)
    config = _PLAIN | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _alpha(scale, rank**0.5 if rank_stabilized else rank),
        "use_rslora": rank_stabilized,
        "target_modules": sorted({in_files(name, 1)[0].split(".")[-2] for name in own}),
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    with mesh.together():
        if mesh.is_first():
            write_texts(path, {_CONFIG: json.dumps(config, indent=2)})


def load_adapter(path: str | os.PathLike, params: Tree) -> Tree:
    """Puts the adapters of a folder of PEFT's form on the kernels they are for.

    A kernel that carries an adapter already gets a second one on top, as with
    `core.adapters.attach`. What `save_adapter` wrote is the same bits again.

    Args:
        path: the folder, with `adapter_config.json` and `adapter_model.safetensors`.
        params: of the base. Over a mesh, lay the result by `decoder.shardings` afterwards.

    Raises:
        ValueError: no such folder, a kind of adapter that is not computed, or adapters of another
            network: names, shapes or ranks that do not fit; the kernel is named.
    """
    path = Path(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            raise ValueError(f"path is {str(path)!r}; there is no {name} in it")
    rank, scale = _rank_and_scale(path / _CONFIG)
    rest = safetensors.tensors(path / _WEIGHTS)
    leaves = kernels(params)
    wrapped = {
        name: _wrap(name, leaf, rank, scale, rest, path / _WEIGHTS)
        for name, leaf in leaves.items()
        if name.endswith("/kernel")
    }
    if rest or not any(isinstance(leaf, LowRank) for leaf in wrapped.values()):
        what = f"tensor {min(rest)!r} has no place in" if rest else "it holds nothing for"
        raise ValueError(
            f"{path / _WEIGHTS}: {what} this network; its kernels are {', '.join(wrapped)}"
        )
    return with_kernels(params, leaves | wrapped)


def _rank_and_scale(file: Path) -> tuple[int, float]:
    config = read_json(file)
    for name, value in _PLAIN.items():
        if config.get(name, value) != value:
            raise ValueError(f"{file}: {name} is {config[name]!r}; only {value!r} is computed")
    for name in _PARTIAL:
        if config.get(name):
            raise ValueError(f"{file}: {name} is {config[name]!r}; it must be empty")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{file}: r is {rank!r}; a whole number >= 1 is needed")
    alpha = float(config.get("lora_alpha", 8))  # PEFT's default
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _wrap(
    name: str, leaf: Any, rank: int, scale: float, rest: dict[str, safetensors.Stored], file: Path
) -> Any:
    """The kernel with its adapter, whose tensors are taken out of `rest`; or as it is."""
    *stack, n, m = leaf.shape
    n_layers = stack[0] if stack else 1
    wanted = {"A": (rank, n), "B": (m, rank)}
    names = {letter: in_adapters(name, n_layers, letter) for letter in wanted}
    missing = [tensor for one in names.values() for tensor in one if tensor not in rest]
    if len(missing) == 2 * n_layers:
        return leaf
    if missing:
        raise ValueError(f"{file}: tensor {missing[0]!r} for {name!r} is missing")
    matrices = {}
    for letter, shape in wanted.items():
        values = []
        for tensor in names[letter]:
            stored = rest.pop(tensor)
            if stored.shape != shape:
                raise ValueError(
                    f"{file}: tensor {tensor!r} has shape {list(stored.shape)}; rank {rank} and "
                    f"{name!r} need {list(shape)}"
                )
            values.append(stored[:].T)
        matrices[letter] = jnp.asarray(np.stack(values) if stack else values[0])
    a, b = matrices.values()
    return LowRank(leaf, a, b, jnp.full(stack, scale, a.dtype))


def _alpha(scale: Any, divisor: float) -> float:
    """The roundest number that gives this scale, in the scale's own type."""
    exact = float(scale) * divisor
    for digits in range(9):
        alpha = round(exact, digits)
        if np.asarray(alpha / divisor).astype(scale.dtype) == scale:
            return alpha if digits else int(alpha)
    return exact
