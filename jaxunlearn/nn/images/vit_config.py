"""What a ViT is built from, one frozen config, and how Hugging Face's folders write it.

Options of a `config.json` that the network does not compute are refused by name; `table` says what
the leaves are called in the file of weights.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.nn.files.configs import TRANSFORMER, number_of, of_folder, read_json, size_of
from jaxunlearn.nn.files.tables import Form, Row, Table, layer_rows, patches

HEAD = "classifier"
_MOST_SIDE = 2**13  # pixels, as of the largest image that is read
_LAYER = {
    "attention_norm": "layernorm_before",
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
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
        for name in ("patch", "width", "n_layers", "n_heads", "mlp_width", "n_classes"):
            size_of(vars(self), name)
        if not all(0 < side <= _MOST_SIDE for side in self.image):
            raise ValueError(f"config: image is {self.image}; at most {_MOST_SIDE} are read")
        number_of(vars(self), "eps")
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch is {self.patch}; it must divide {height} x {width}")
        if self.width % self.n_heads:
            raise ValueError(f"n_heads is {self.n_heads}; it must divide width = {self.width}")

    @property
    def n_tokens(self) -> int:
        """Patches and the class token."""
        height, width, _ = self.image
        return 1 + (height // self.patch) * (width // self.patch)


def read_config(path: str | os.PathLike, n_classes: int | None = None) -> Config:
    """The config of a Hugging Face folder, whose weights are not read.

    The number of classes is by default that of the labels in its `config.json`.

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
        **{ours: size_of(record, theirs) for ours, theirs in TRANSFORMER.items()},
        n_classes=_n_labels(record) if n_classes is None else n_classes,
        eps=number_of(record, "layer_norm_eps", 1e-12),
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
        **{theirs: getattr(config, ours) for ours, theirs in TRANSFORMER.items()},
        "layer_norm_eps": config.eps,
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
        "torch_dtype": dtype,
    }


def normalisation(path: str | os.PathLike) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a checkpoint was trained on, in [0, 1].

    They stand in `preprocessor_config.json` of a Hugging Face folder; without that file, or for
    what it leaves out, they are 0.5 and 0.5, as transformers has it for ViTs.

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


def table(config: Config) -> Table:
    """Names and layouts; `ViTModel` writes them without "vit.", and a pooler, which is left out."""
    embeddings, width = "vit.embeddings", config.width
    cut = patches(config.patch, config.image[-1])
    rows = [
        Row("embed/cls", f"{embeddings}.cls_token", Form(view=(1, 1, -1))),
        Row("embed/positions", f"{embeddings}.position_embeddings", Form(view=(1, -1, width))),
        *layer_rows("embed/patch", f"{embeddings}.patch_embeddings.projection", cut),
        *layer_rows("norm", "vit.layernorm"),
        *layer_rows("head", HEAD),
    ]
    for ours, theirs in _LAYER.items():
        rows += layer_rows(f"layers/{ours}", f"vit.encoder.layer.{{}}.{theirs}")
    return Table(tuple(rows), ignore=r"(vit\.)?pooler\..*", prefix="vit.")
