"""Where examples come from: to make a store of them, and to read again those that are left."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import data
from jaxunlearn.core.pixels import as_float
from jaxunlearn.core.readers import read_object
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import text
from jaxunlearn.exact.predictor import Predictor
from jaxunlearn.exact.settings import STAYED, Moved, Settings, reading_of, settings_of
from jaxunlearn.exact.sliceable import Config
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
        ids: ids of the examples.
        groups: groups of the examples.
        examples: arrays [n, ...], see `sliceable`.
        public: images and labels that train the base; None if it is given.
        base: parameters of the base; None if they have to be trained first.
        config: config of the network.
        reading: how inputs are read, JSON-like; a store keeps it.
        size: height and width that images were scaled to; None: they are as they were.
    """

    ids: list[str]
    groups: list[str]
    examples: Arrays
    public: Arrays | None
    base: Tree | None
    config: Config
    reading: dict[str, Any]
    size: int | None = None


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
    names, images = _images(settings, reading, data_dir)
    x, y, n_classes = images.x_train, images.y_train, images.n_classes
    rows, public, base = np.arange(len(names)), None, None
    drawn = rows[:0]
    if settings.base is None:
        config = small_vit(settings, x.shape[1:], n_classes)
        drawn, rows = _split(settings, len(names))
        public = {"x": x[drawn], "y": y[drawn]}
    else:
        config, base = vit.from_pretrained(settings.base, n_classes=n_classes)
        if config.image != x.shape[1:]:
            raise ValueError(
                f"base reads images {list(config.image)}; those of {settings.data} are "
                f"{list(x.shape[1:])}"
            )
    ids, examples = [names[row] for row in rows], {"x": x[rows], "y": y[rows]}
    is_public = set(drawn.tolist())
    reading |= {
        "classes": list(images.classes),
        "test": list(images.files_val),
        "validation": len(images.x_val),
        "public": [name for row, name in enumerate(names) if row in is_public],
    }
    return Material(ids, ids, examples, public, base, config, reading, images.size)


def examples_of(store: Predictor, moved: Moved = STAYED) -> tuple[list[str], Arrays]:
    """What is there of a store's examples that were not deleted: the ids of the rows, and the rows.

    Files of deleted images may be gone, and so may the lines of deleted texts that have ids.

    Raises:
        ValueError: the store does not say where they come from, or they cannot be read.
    """
    settings, reading = settings_of(store, moved), reading_of(store)
    store.refresh()
    left = [name for name in store.files.ids if name not in store.deleted]
    if _is_text(settings):
        wanted, questions = set(left), _questions(settings, None, moved.data_dir)
        return _read_again(store, settings, [one for one in questions if _id_of(one) in wanted])
    if reading["classes"]:
        here = [name for name in left if (Path(settings.data) / name).is_file()]
        x, y = _from_folder(store, settings, here)
        return here, {"x": x, "y": y}
    names, images = _images(settings, reading, moved.data_dir)
    return names, {"x": images.x_train, "y": images.y_train}


def test_of(store: Predictor, moved: Moved = STAYED) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels that a store of images is judged by.

    Raises:
        ValueError: as in `examples_of`.
    """
    settings, reading = settings_of(store, moved), reading_of(store)
    if reading["classes"]:
        return _from_folder(store, settings, reading["test"])
    _, images = _images(settings, reading, moved.data_dir)
    return images.x_val, images.y_val


def read_images(store: Predictor, files: Sequence[Path]) -> np.ndarray:
    """Image files, as a store's network reads them: floats [n, H, W, C].

    Raises:
        ValueError: a store of texts; a file that is missing, or an image of another size.
    """
    if not isinstance(store.config, vit.Config):
        raise ValueError(f"the store {store.folder} reads texts; it has no use for images")
    resize = settings_of(store).size is not None
    return scaled(data.images(files, store.config.image, resize=resize), reading_of(store))


def questions_of(
    store: Predictor, files: Sequence[Path], moved: Moved = STAYED
) -> tuple[list[str], Arrays]:
    """Questions with their answers from JSON-lines files, as a store's language model reads them.

    Raises:
        ValueError: a file that cannot be read, or a text that is too long.
    """
    questions = [question for file in files for question in text.jsonl(file)]
    return _read_again(store, settings_of(store, moved), questions)


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
    """The config of a pretrained base, of a ViT with so many classes; no weights are read.

    Raises:
        ValueError: nothing that can be read.
    """
    file = base / "config.json"
    if file.is_file() and read_object(file).get("model_type") == "vit":
        return vit.read_config(base, n_classes)
    return decoder.read_config(base)


def _images(
    settings: Settings, reading: dict[str, Any], data_dir: Path | None
) -> tuple[list[str], data.Dataset]:
    """Ids of the training images, and the set as a network reads it."""
    sizes = settings.n_train, settings.n_val
    # Decoded images that outlived the user's files would keep what was deleted: on no disk at all.
    cached = data.local_path(settings.data, data_dir) is None
    where: dict[str, Any] = {"data_dir": data_dir, "cache_dir": None if cached else False}
    shape = {"size": settings.size, "default_size": _usual_size(settings)}
    loaded = data.load(settings.data, *sizes, **shape, **where)
    x, x_val = (scaled(images, reading) for images in (loaded.x_train, loaded.x_val))
    ids = list(loaded.files_train) or [f"train-{row}" for row in range(len(x))]
    return ids, dataclasses.replace(loaded, x_train=x, x_val=x_val)


def _usual_size(settings: Settings) -> int:
    """The size of pictures where a folder has several and the settings none."""
    if settings.base is None:
        return data.DEFAULT_SIZE
    return vit.read_config(settings.base, 1).image[0]


def _from_folder(
    store: Predictor, settings: Settings, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a folder, and their labels."""
    folder, reading = Path(settings.data), reading_of(store)
    if not names or not folder.is_dir():
        raise ValueError(f"data is {settings.data!r}; none of the store's images are there")
    x = read_images(store, [folder / name for name in names])
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
    pretrained = decoder.from_pretrained(_language_model(settings))
    texts = (pretrained.tokenizer, pretrained.chat_template)
    ids, examples = _encoded(settings, questions, pretrained.config, *texts)
    if settings.data.startswith("tofu:"):
        groups = [f"{settings.data}/author-{i // _AUTHOR}" for i in range(len(ids))]
    else:
        groups = [
            name if question.extra.get("group") is None else str(question.extra["group"])
            for name, question in zip(ids, questions, strict=True)
        ]
    return Material(ids, groups, examples, None, pretrained.params, pretrained.config, {})


def _questions(settings: Settings, n: int | None, data_dir: Path | None) -> list[text.Question]:
    """The first n of the set's, or all."""
    split = settings.data.removeprefix("tofu:")
    if split != settings.data:
        questions = text.tofu(split, data_dir=data_dir and data_dir / "tofu")
    else:
        questions = text.jsonl(settings.data)
    if n is not None and not 1 <= n <= len(questions):
        raise ValueError(f"n_train is {n}; {settings.data} has {len(questions)}")
    return questions[:n]


def _id_of(question: text.Question) -> str:
    given = question.extra.get("id")
    return question.id if given is None else str(given)


def _language_model(settings: Settings) -> Path:
    if settings.base is None:
        raise ValueError("base is None; texts need a language model, a folder or a .gguf file")
    return settings.base


def _read_again(
    store: Predictor, settings: Settings, questions: list[text.Question]
) -> tuple[list[str], Arrays]:
    """Ids and arrays of a store's texts; of the base only the tokenizer is read."""
    assert isinstance(store.config, decoder.Config)
    texts = decoder.read_tokenizer(_language_model(settings))
    return _encoded(settings, questions, store.config, *texts)


def _encoded(
    settings: Settings,
    questions: list[text.Question],
    config: decoder.Config,
    tokenizer: Any,
    chat_template: str | None,
) -> tuple[list[str], Arrays]:
    """Ids, and arrays of the plan's sizes whatever the texts are."""
    encoder = text.Encoder(
        tokenizer, chat_template, config.vocabulary, config.context, settings.max_tokens
    )
    encoded = encoder.sequences(questions)
    ids = [_id_of(question) for question in questions]
    for name, n in zip(ids, encoded.lengths, strict=True):
        if n > settings.max_answer:
            raise ValueError(
                f"the answer of {name!r} has {n} tokens; max_answer is {settings.max_answer}"
            )
    arrays = {
        "x": _padded(encoded.tokens, settings.max_tokens, 0),
        "where": _padded(encoded.where, settings.max_answer, 0),
        "labels": _padded(encoded.labels, settings.max_answer, -1),
    }
    return ids, arrays


def _padded(array: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Rows of a width; what is cut off is padding."""
    out = np.full((len(array), width), fill, array.dtype)
    n = min(width, array.shape[1])
    out[:, :n] = array[:, :n]
    return out
