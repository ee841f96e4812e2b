"""LoRA adapters in files, as PEFT writes and reads them, by the table of the network below."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import adapters, mesh, tree
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import reader, safetensors, writer
from jaxunlearn.nn.files.configs import read_json
from jaxunlearn.nn.files.tables import LINEAR, Row, Table

_STEM, _CONFIG = "adapter_model", "adapter_config.json"
# What the config may ask for; anything else is another computation.
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
# Entries that are read, or that do not change what a trained adapter computes on its base: where it
# comes from, how it was trained, and options of what is refused. Any other must be empty.
_HARMLESS = {
    *_PLAIN,
    *("r", "lora_alpha", "use_rslora", "init_lora_weights", "target_modules", "exclude_modules"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "layers_pattern", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config"),
}
_LARGEST = 1e30  # of alpha
# Ways to begin that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) take from it.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")


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
            leaves[name] = LowRank(leaf, a, b, adapters.scales(leaf.shape[:-2], scale, leaf.dtype))
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
    initial = config.get("init_lora_weights", True)
    if not any(initial is one or (initial == one and isinstance(one, str)) for one in _INITIAL):
        raise ValueError(
            f"{file}: init_lora_weights is {initial!r}, which changes the base when training "
            "begins; convert it by PEFT's save_pretrained(path_initial_model_for_weight_conversion="
            "...), which writes a plain adapter"
        )
    for name, value in config.items():
        if name not in _HARMLESS and value not in (None, False, [], {}):
            raise ValueError(
                f"{file}: {name} is {value!r}, which is not computed; it must be empty"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)  # PEFT's default
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{file}: r is {rank!r}; a whole number >= 1 is needed")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < _LARGEST:
        raise ValueError(f"{file}: lora_alpha is {alpha!r}; a finite number is needed")
    stabilized = config.get("use_rslora") or False
    if not isinstance(stabilized, bool):
        raise ValueError(f"{file}: use_rslora is {stabilized!r}; true or false is needed")
    return rank, alpha / (rank**0.5 if stabilized else rank)


def _alpha(scale: Any, divisor: float) -> float:
    """The roundest number that gives this scale in float32, as `load` has it."""
    exact = float(scale) * divisor
    for digits in range(9):
        alpha = round(exact, digits)
        if np.float32(alpha / divisor) == np.float32(scale):
            return alpha if digits else int(alpha)
    return exact
