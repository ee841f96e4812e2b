"""LoRA adapters in files, as PEFT writes and reads them, by the table of the network below."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import mesh, tree
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import reader, safetensors, writer
from jaxunlearn.nn.files.configs import read_json
from jaxunlearn.nn.files.tables import LINEAR, Row, Table

_STEM, _CONFIG = "adapter_model", "adapter_config.json"
# What the config may ask for; anything else is another computation.
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
_PARTIAL = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")


def save(path: Path, params: Tree, table: Table, base: str, rank_stabilized: bool) -> None:
    """See `nn.weights.save_adapter`."""
    wrapped = {
        name: leaf for name, leaf in writer.kernels(params).items() if isinstance(leaf, LowRank)
    }
    if not wrapped:
        raise ValueError("params has no adapters; core.adapters.attach puts some on")
    first, adapter = next(iter(wrapped.items()))
    rank, scale = adapter.lora_a.shape[-1], np.ravel(mesh.gather(adapter.scale))[0]
    matrices = {}
    for name, leaf in wrapped.items():
        scales = np.unique(mesh.gather(leaf.scale))
        if leaf.lora_a.shape[-1] != rank or scales.size != 1 or scales[0] != scale:
            raise ValueError(
                f"params: {name!r} has rank {leaf.lora_a.shape[-1]} and scale "
                f"{', '.join(map(str, scales))}; {first!r} has {rank} and {scale}, and a file "
                "holds one of each"
            )
        matrices |= {f"{name}/A": leaf.lora_a, f"{name}/B": leaf.lora_b}
    config = _PLAIN | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _alpha(scale, rank**0.5 if rank_stabilized else rank),
        "use_rslora": rank_stabilized,
        "target_modules": sorted({table.tensor(name)[1].split(".")[-2] for name in wrapped}),
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    texts = {_CONFIG: json.dumps(config, indent=2)}
    writer.save(path, matrices, _of_adapters(table, wrapped), texts, stem=_STEM)


def load(path: Path, params: Tree, table: Table) -> Tree:
    """See `nn.weights.load_adapter`."""
    file = path / f"{_STEM}.safetensors"
    for name in (_CONFIG, file.name):
        if not (path / name).is_file():
            raise ValueError(f"path is {str(path)!r}; there is no {name} in it")
    rank, scale = _rank_and_scale(path / _CONFIG)
    stored = safetensors.tensors(file)
    leaves = writer.kernels(params)
    known = {name: leaf for name, leaf in leaves.items() if name.endswith("/kernel")}
    adapted = _of_adapters(table, known)
    shapes = {}
    for name, leaf in known.items():
        *stack, n, m = leaf.shape
        ends = {f"{name}/A": (*stack, n, rank), f"{name}/B": (*stack, rank, m)}
        if any(tensor in stored for end in ends for tensor in adapted.names(end, *stack or [1])):
            shapes |= {end: jax.ShapeDtypeStruct(shape, "float32") for end, shape in ends.items()}
    try:
        matrices = tree.named(reader.read(file, stored, adapted, shapes, None))
    except ValueError as error:
        message = f"{error}; r is {rank} in {_CONFIG}, kernels are {', '.join(known)}"
        raise ValueError(message) from error
    if not matrices:
        raise ValueError(f"{file}: it holds nothing for this network's {', '.join(known)}")
    for name, leaf in known.items():
        if f"{name}/A" in matrices:
            a, b = (matrices[f"{name}/{letter}"] for letter in "AB")
            leaves[name] = LowRank(leaf, a, b, jnp.full(leaf.shape[:-2], scale, a.dtype))
    return writer.with_kernels(params, leaves)


def _of_adapters(table: Table, kernels: dict[str, Any]) -> Table:
    """The table of the adapters' matrices, whose leaves are `KERNEL/A` and `KERNEL/B`."""
    stems = {name: table.tensor(name)[1].removesuffix(".weight") for name in kernels}
    rows = [
        Row(re.escape(f"{name}/{x}"), f"base_model.model.{stem}.lora_{x}.weight", LINEAR)
        for name, stem in stems.items()
        for x in "AB"
    ]
    return Table(tuple(rows))


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


def _alpha(scale: Any, divisor: float) -> float:
    """The roundest number that gives this scale, in the scale's own type."""
    exact = float(scale) * divisor
    for digits in range(9):
        alpha = round(exact, digits)
        if np.asarray(alpha / divisor).astype(scale.dtype) == scale:
            return alpha if digits else int(alpha)
    return exact
