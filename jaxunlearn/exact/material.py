"""Where examples come from: to make a store of them, and to read again those that are left."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import data
from jaxunlearn.core.pixels import as_float
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import text
from jaxunlearn.exact.service import Service
from jaxunlearn.exact.settings import Settings, Where, reading_of, settings_of
from jaxunlearn.exact.store import Config
from jaxunlearn.nn.images import vit
from jaxunlearn.nn.language import decoder

Arrays = dict[str, np.ndarray]

_AUTHOR = 20  # questions about each of TOFU's authors, one after the other
# Statistics of the examples would tell of deleted ones: constants, or the base's own.
_PLAIN = {"mean": [0.5], "std": [0.5]}


@dataclasses.dataclass(frozen=True)
class Material:
    """What settings stand for.

    Attributes:
        ids: of the examples.
        groups: of the examples.
        examples: arrays [n, ...], see `networks`.
        public: images and labels that train the base; None if it is given.
        base: its parameters; None if they have to be trained first.
        config: of the network.
        reading: how inputs are read, JSON-like; a store keeps it.
    """

    ids: list[str]
    groups: list[str]
    examples: Arrays
    public: Arrays | None
    base: Tree | None
    config: Config
    reading: dict[str, Any]


def read(settings: Settings, data_dir: Path | None = None) -> Material:
    """Reads the examples.

    Raises:
        ValueError: a setting is not as described; it is named.
    """
    if settings.seed < 0:
        raise ValueError(f"seed is {settings.seed}; at least 0 is needed")
    if _is_text(settings):
        return _text_material(settings, data_dir)
    reading = dict(_PLAIN)
    if settings.base is not None:
        mean, std = vit.normalisation(settings.base)
        reading = {"mean": list(mean), "std": list(std)}
    own = _images(settings, reading, data_dir)
    rows, public, base = np.arange(len(own.ids)), None, None
    if settings.base is None:
        config = small_vit(settings, own.x.shape[1:], own.n_classes)
        drawn, rows = _split(settings, len(own.ids))
        public = {"x": own.x[drawn], "y": own.y[drawn]}
    else:
        config, base = vit.from_pretrained(settings.base, n_classes=own.n_classes)
        if config.image != own.x.shape[1:]:
            raise ValueError(
                f"base reads images {list(config.image)}; those of {settings.data} are "
                f"{list(own.x.shape[1:])}"
            )
    ids = [own.ids[row] for row in rows]
    examples = {"x": own.x[rows], "y": own.y[rows]}
    reading |= {"classes": own.classes, "test": own.test}
    return Material(ids, ids, examples, public, base, config, reading)


def examples_of(service: Service, where: Where | None = None) -> tuple[list[str], Arrays]:
    """What is there of a store's examples that were not deleted: the ids of the rows, and the rows.

    Files of deleted images may be gone, and so may the lines of deleted texts that have ids.

    Raises:
        ValueError: the store does not say where they come from, or they cannot be read.
    """
    settings, reading = settings_of(service, where), reading_of(service)
    service.refresh()
    left = [name for name in service.files.ids if name not in service.deleted]
    if _is_text(settings):
        wanted, questions = set(left), _questions(settings, None, where and where.data_dir)
        questions = [question for question in questions if _id_of(question) in wanted]
        return _encoded(settings, questions)[:2]
    if reading["classes"]:
        here = [name for name in left if (Path(settings.data) / name).is_file()]
        x, y = _from_folder(service, settings, here)
        return here, {"x": x, "y": y}
    own = _images(settings, reading, where and where.data_dir)
    return own.ids, {"x": own.x, "y": own.y}


def test_of(service: Service, where: Where | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels that a store of images is judged by.

    Raises:
        ValueError: as in `examples_of`.
    """
    settings, reading = settings_of(service, where), reading_of(service)
    if reading["classes"]:
        return _from_folder(service, settings, reading["test"])
    own = _images(settings, reading, where and where.data_dir)
    return own.x_val, own.y_val


def read_images(service: Service, files: Sequence[Path]) -> np.ndarray:
    """Image files, as a store's network reads them: floats [n, H, W, C].

    Raises:
        ValueError: a store of texts; a file that is missing, or an image of another size.
    """
    config = service.files.config
    if not isinstance(config, vit.Config):
        raise ValueError(f"the store {service.folder} reads texts; it has no use for images")
    return scaled(data.images(files, config.image), reading_of(service))


def questions_of(
    service: Service, files: Sequence[Path], where: Where | None = None
) -> tuple[list[str], Arrays]:
    """Questions with their answers from JSON-lines files, as a store's language model reads them.

    Raises:
        ValueError: a file that cannot be read, or a text that is too long.
    """
    found = [question for file in files for question in text.jsonl(file)]
    return _encoded(settings_of(service, where), found)[:2]


def scaled(images: np.ndarray, reading: dict[str, Any]) -> np.ndarray:
    """Images as a network reads them: uint8, or floats in [0, 1], less a mean, by a deviation."""
    if len(reading["mean"]) not in (1, images.shape[-1]):
        raise ValueError(
            f"the base's image_mean has {len(reading['mean'])} values; the images have "
            f"{images.shape[-1]} channels"
        )
    bright = as_float(images).astype(np.float32)
    mean, std = (np.array(reading[name], np.float32) for name in ("mean", "std"))
    return (bright - mean) / std


def small_vit(settings: Settings, image: tuple[int, ...], n_classes: int) -> vit.Config:
    """The network that is trained where no base is given.

    Raises:
        ValueError: images that are not square, or patches that do not divide them.
    """
    height, width, channels = image
    s = settings.sizes
    if height != width or s.patches < 1 or height % s.patches:
        raise ValueError(
            f"sizes.patches is {s.patches}; it must divide the side of a square image, and those "
            f"are {height} x {width}"
        )
    patch = height // s.patches
    image = (height, width, channels)
    return vit.Config(image, patch, s.width, s.layers, s.heads, s.mlp_width, n_classes)


def config_of(base: Path, n_classes: int) -> Config:
    """The network of a pretrained base, a ViT's with so many classes.

    Raises:
        ValueError: nothing that can be read.
    """
    file = base / "config.json"
    if file.is_file() and json.loads(file.read_text()).get("model_type") == "vit":
        return vit.from_pretrained(base, n_classes=n_classes)[0]
    return decoder.from_pretrained(base).config


class _Images(NamedTuple):
    """A set of images: rows with their ids, and what to judge by."""

    ids: list[str]
    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    n_classes: int
    classes: list[str]
    test: list[str]


def _images(settings: Settings, reading: dict[str, Any], data_dir: Path | None) -> _Images:
    sizes = settings.n_train, settings.n_val
    if data.local_path(settings.data, data_dir) is None:
        own = data.load(settings.data, *sizes, data_dir=data_dir)
    else:  # decoded images that outlived the files would keep what was deleted
        with tempfile.TemporaryDirectory() as cache:
            own = data.load(settings.data, *sizes, data_dir=data_dir, cache_dir=cache)
    x, x_val = (scaled(images, reading) for images in (own.x_train, own.x_val))
    ids = list(own.files_train) or [f"train-{row}" for row in range(len(x))]
    classes, test = list(own.classes), list(own.files_val)
    return _Images(ids, x, own.y_train, x_val, own.y_val, own.n_classes, classes, test)


def _from_folder(
    service: Service, settings: Settings, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a folder, and their labels."""
    folder, reading = Path(settings.data), reading_of(service)
    if not names or not folder.is_dir():
        raise ValueError(f"data is {settings.data!r}; none of the store's images are there")
    x = read_images(service, [folder / name for name in names])
    y = [reading["classes"].index(Path(name).parent.name) for name in names]
    return x, np.array(y, np.int32)


def _split(settings: Settings, n: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < settings.public < 1:
        raise ValueError(
            f"public is {settings.public}; without a base a share above 0 and below 1 is needed"
        )
    mixed = np.random.default_rng(settings.seed).permutation(n)
    n_public = round(settings.public * n)
    if not 0 < n_public < n:
        raise ValueError(f"public is {settings.public}; of {n} images that is {n_public}, or all")
    return np.sort(mixed[:n_public]), np.sort(mixed[n_public:])


def _is_text(settings: Settings) -> bool:
    return settings.data.startswith("tofu:") or settings.data.endswith((".jsonl", ".json"))


def _text_material(settings: Settings, data_dir: Path | None) -> Material:
    questions = _questions(settings, settings.n_train, data_dir)
    ids, examples, pretrained = _encoded(settings, questions)
    if settings.data.startswith("tofu:"):
        groups = [f"{settings.data}/author-{i // _AUTHOR}" for i in range(len(ids))]
    else:
        groups = [
            name if question.extra.get("group") is None else str(question.extra["group"])
            for name, question in zip(ids, questions, strict=True)
        ]
    return Material(ids, groups, examples, None, pretrained.params, pretrained.config, {})


def _questions(settings: Settings, n: int | None, data_dir: Path | None) -> list[Any]:
    """The first n of the set's, or all."""
    split = settings.data.removeprefix("tofu:")
    if split != settings.data:
        found = text.tofu(split, data_dir=data_dir and data_dir / "tofu")
    else:
        found = text.jsonl(settings.data)
    if n is not None and not 1 <= n <= len(found):
        raise ValueError(f"n_train is {n}; {settings.data} has {len(found)}")
    return found[:n]


def _id_of(question: Any) -> str:
    own = question.extra.get("id")
    return question.id if own is None else str(own)


def _encoded(
    settings: Settings, questions: list[Any]
) -> tuple[list[str], Arrays, decoder.Pretrained]:
    """Ids, arrays of the plan's sizes whatever the texts are, and the network that reads them."""
    if settings.base is None:
        raise ValueError("base is None; texts need a language model, a folder or a .gguf file")
    pretrained = decoder.from_pretrained(settings.base)
    encoder = text.Encoder(
        pretrained.tokenizer,
        pretrained.chat_template,
        pretrained.config.vocabulary,
        pretrained.config.context,
        settings.max_tokens,
    )
    found = encoder.sequences(questions)
    ids = [_id_of(question) for question in questions]
    for name, n in zip(ids, found.lengths, strict=True):
        if n > settings.max_answer:
            raise ValueError(
                f"the answer of {name!r} has {n} tokens; max_answer is {settings.max_answer}"
            )
    arrays = {
        "x": _padded(found.tokens, settings.max_tokens, 0),
        "where": _padded(found.where, settings.max_answer, 0),
        "labels": _padded(found.labels, settings.max_answer, -1),
    }
    return ids, arrays, pretrained


def _padded(array: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Rows of a width; what is cut off is padding."""
    out = np.full((len(array), width), fill, array.dtype)
    n = min(width, array.shape[1])
    out[:, :n] = array[:, :n]
    return out
