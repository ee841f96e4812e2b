"""What a ViT is built from: one frozen config, read from a Hugging Face `config.json` and written.

Options that the network does not compute are refused by name.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.nn.files.configs import of_folder, read_json, size_of

_COMPUTED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a ViT.

    Attributes:
        image: height, width and channels.
        patch: P, the side of a square patch, which divides height and width.
        width: D, the width of the residual stream.
        n_layers: N, the number of layers.
        n_heads: number of heads, which divides the width.
        mlp_width: width of the hidden layer.
        n_classes: outputs.
        eps: what the normalisations add to the variance.
    """

    image: tuple[int, int, int]
    patch: int
    width: int
    n_layers: int
    n_heads: int
    mlp_width: int
    n_classes: int
    eps: float = 1e-12

    def __post_init__(self):
        height, width, _ = self.image
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch is {self.patch}; it must divide {height} x {width}")
        if self.width % self.n_heads:
            raise ValueError(f"n_heads is {self.n_heads}; it must divide width = {self.width}")
        for name in ("width", "n_layers", "n_heads", "mlp_width", "n_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def n_tokens(self) -> int:
        """Patches and the class token."""
        height, width, _ = self.image
        return 1 + (height // self.patch) * (width // self.patch)


def read_config(path: str | os.PathLike, n_classes: int | None = None) -> Config:
    """The config of a Hugging Face folder, whose weights are not read.

    Args:
        path: the folder, with `config.json`.
        n_classes: outputs; by default as many as there are labels in `config.json`.

    Raises:
        ValueError: no model there, or an option that is not supported.
    """
    return of_folder(Path(path), lambda record: from_hugging_face(record, n_classes))


def from_hugging_face(record: Mapping[str, Any], n_classes: int | None = None) -> Config:
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
        image=(height, width, size_of({"num_channels": 3} | dict(record), "num_channels")),
        patch=patch,
        width=size_of(record, "hidden_size"),
        n_layers=size_of(record, "num_hidden_layers"),
        n_heads=size_of(record, "num_attention_heads"),
        mlp_width=size_of(record, "intermediate_size"),
        n_classes=_n_labels(record) if n_classes is None else n_classes,
        eps=record.get("layer_norm_eps", 1e-12),
    )


def _sides(record: Mapping[str, Any], name: str) -> tuple[int, int]:
    match record.get(name):
        case int(side) if side > 0:
            return side, side
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise ValueError(
        f"config: {name} is {record.get(name)!r}; a whole number or two, above 0, are needed"
    )


def _n_labels(record: Mapping[str, Any]) -> int:
    if record.get("id2label"):
        return len(record["id2label"])
    if "num_labels" in record:
        return size_of(record, "num_labels")
    if "ViTForImageClassification" in (record.get("architectures") or ()):
        return 2  # the number of labels that transformers leaves out
    raise ValueError("config: id2label is missing, and so is num_labels; n_classes is needed")


def to_hugging_face(config: Config, dtype: str) -> dict[str, Any]:
    """The content of a `config.json`; the inverse of `from_hugging_face`."""
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


def normalisation(path: str | os.PathLike) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a checkpoint was trained on, in [0, 1].

    Args:
        path: a Hugging Face folder; see `preprocessor_config.json` there. Without that file, or
            what it leaves out: 0.5 and 0.5, as transformers has it for ViTs.

    Returns:
        Tuples of one float, or of one for each channel.

    Raises:
        ValueError: a file that says something else.
    """
    file = Path(path) / "preprocessor_config.json"
    record = read_json(file) if file.is_file() else {}
    factor = record.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, float) and abs(factor * 255 - 1) < 1e-4  # as its writer wrote it
    if record.get("do_rescale", True) is not True or not is_usual:
        raise ValueError(f"{file}: only images rescaled by 1/255 are read")
    if not record.get("do_normalize", True):
        return (0.0,), (1.0,)
    stated = {name: record.get(name, [0.5]) for name in ("image_mean", "image_std")}
    try:
        mean, std = (tuple(map(float, np.atleast_1d(one))) for one in stated.values())
        if len(mean) != len(std) or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError("not as many, not finite, or not above 0")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {stated}; a number or one for each channel needed") from error
    return mean, std
