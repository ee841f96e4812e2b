"""The weights of a Hugging Face folder: one safetensors file, or several and their index.

Or of a single file by its path.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.files.configs import read_json

STEMS = ("model", "diffusion_pytorch_model")  # of transformers, and of diffusers
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def weight_file(stem: str, variant: str | None = None) -> str:
    """Name of a file that holds all weights.

    >>> weight_file("model"), weight_file("model", "fp16")
    ('model.safetensors', 'model.fp16.safetensors')
    """
    return f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors"


def index_file(stem: str, variant: str | None = None) -> str:
    """Name of the index of several files."""
    return f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"


def tensors(
    path: Path, *, variant: str | None = None, ignore: str = ""
) -> dict[str, safetensors.Stored]:
    """The tensors of a folder by name; only headers are read.

    `variant` is the kind of weights, where a folder has several: "fp16" for
    `model.fp16.safetensors`; `ignore` is that of `tables.Table`.

    Raises:
        ValueError: no weights there, pickled ones, an index that does not fit, or a broken file.
    """
    names = sorted(file.name for file in path.iterdir())
    for stem in STEMS:
        single = weight_file(stem, variant)
        if single in names:
            return safetensors.tensors(path / single, ignore=ignore)
        for index in (index_file(stem, variant), f"{single}.index.json"):
            if index in names:
                return _of_index(path / index, ignore)
    first, second = STEMS
    missing = (
        f"{path} has no weights: neither {weight_file(first, variant)} nor "
        f"{index_file(first, variant)}, nor those of {second!r}"
    )
    if other := [name for name in names if name.endswith(".safetensors")]:
        raise ValueError(f"{missing}; there are {', '.join(other)}; see `variant`")
    _refuse_pickles(path, names)
    raise ValueError(missing)


def tensors_at(path: Path, *, ignore: str = "") -> dict[str, safetensors.Stored]:
    """The tensors of a safetensors file, or of a folder as `tensors` reads it.

    Raises:
        ValueError: neither; a pickled file; or a broken one.
    """
    if path.is_dir():
        return tensors(path, ignore=ignore)
    if not path.is_file():
        raise ValueError(f"path is {str(path)!r}, which is neither a file nor a folder")
    if path.suffix in _PICKLED:
        # Checkpoints of classifiers hold their weights under one of these names, or bare.
        raise ValueError(
            f"{path} is pickled and could run any code when it is read. Where torch and "
            "safetensors are installed, these lines convert it, after `import torch, "
            "safetensors.torch`:\n"
            f"    weights = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
            "    for inner in ('state_dict', 'net', 'model'):\n"
            "        weights = weights.get(inner, weights)\n"
            "    weights = {name: tensor.clone().contiguous() for name, tensor in "
            "weights.items()}\n"
            f"    safetensors.torch.save_file(weights, {str(path.with_suffix('.safetensors'))!r})"
        )
    return safetensors.tensors(path, ignore=ignore)


def _of_index(index: Path, ignore: str) -> dict[str, safetensors.Stored]:
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict):
        raise ValueError(f"{index}: it has no weight_map")
    stored: dict[str, safetensors.Stored] = {}
    for name, file in file_of.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: tensor {name!r} is in {file!r}, which is no file beside it")
    for file in sorted(set(file_of.values())):
        if not (index.parent / file).is_file():
            raise ValueError(f"{index}: the file {file!r} that it names is not there")
        stored |= safetensors.tensors(index.parent / file, ignore=ignore)
    for name, file in file_of.items():
        if name not in stored and not re.fullmatch(ignore, name):
            raise ValueError(f"{index.parent / file}: tensor {name!r} is missing")
    return stored


def _refuse_pickles(path: Path, names: Iterable[str]) -> None:
    pickled = [name for name in names if name.endswith(_PICKLED)]
    pickled = [name for name in pickled if "model" in name] or pickled[:1]
    if pickled:
        files = [str(path / name) for name in pickled]
        target = weight_file(STEMS["diffusion" in pickled[0]])
        raise ValueError(
            f"{path} has only pickled weights ({', '.join(pickled)}), which could run any code "
            "when they are read. Where torch and safetensors are installed, two lines convert "
            "them, after `import torch, safetensors.torch`:\n"
            f"    weights = {{name: tensor.clone().contiguous() for file in {files} for name, "
            "tensor in torch.load(file, map_location='cpu', weights_only=True).items()}\n"
            f"    safetensors.torch.save_file(weights, {str(path / target)!r})"
        )
