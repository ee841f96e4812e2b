"""Sets of tensorflow_datasets that were prepared as ArrayRecord, read without TensorFlow."""

import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.readers import read_object, reading
from jaxunlearn.data._decode import MODES, MOST_PIXELS, Encoded, Item
from jaxunlearn.data._notices import notice

_NAME = re.compile(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?")
_CHUNK = 512  # records read at once


def data_folder(data_dir: str | os.PathLike | None) -> Path:
    """The folder of prepared sets: `data_dir`, else `$TFDS_DATA_DIR`, else tfds's own default."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(folder))  # it stays as it is where nobody is at home


def find(name: str, folder: Path) -> Path | None:
    """The newest prepared version in a folder of "name", "name/config", or one with ":version"."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    place = folder.joinpath(*filter(None, match.group(1, 2)))
    infos = place.glob("*/dataset_info.json")
    versions = {version: info.parent for info in infos if (version := _version(info))}
    if match[3]:
        return versions.get(tuple(map(int, match[3].split("."))))
    return versions[max(versions)] if versions else None


def _version(info: Path) -> tuple[int, ...] | None:
    # Folders of interrupted preparations have other names, so they are no versions.
    text = info.parent.name
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", text) else None


def prepared(folder: Path) -> list[str]:
    """Names of the sets prepared in a folder."""
    infos = (
        info for depth in ("*/*", "*/*/*") for info in folder.glob(f"{depth}/dataset_info.json")
    )
    places = {info.parent.parent for info in infos if _version(info)}
    return sorted(place.relative_to(folder).as_posix() for place in places)


def is_known(name: str) -> bool:
    """Whether tensorflow_datasets has a builder for this name."""
    match = _NAME.fullmatch(name)
    return bool(match) and match[1] in _module().list_builders(with_community_datasets=False)


def how_to_prepare(name: str, folder: Path) -> str:
    """What to do about a set that is not there or cannot be read."""
    return (
        f"prepare it once, where tensorflow is installed (only this step needs it): "
        f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(str(folder))}"
    )


def open_prepared(name: str, place: Path, folder: Path) -> Encoded:
    """A prepared set as encoded images; its version lies at `place`, all sets in `folder`.

    Raises:
        ValueError: it cannot be read at random (TFRecord), a file is missing or damaged, or it is
            no image classification set with images of one shape and a training and test split.
    """
    kind = _file_format(place)
    if kind != "array_record":
        raise ValueError(
            f"data is {name!r}, prepared in {place} as {kind}, which cannot be read at random; "
            + how_to_prepare(name, folder)
        )
    with reading(f"{place} cannot be read as a prepared set"):
        builder = _module().builder_from_directory(place)
        features, splits = builder.info.features, builder.info.splits
        shards = {
            split: [
                (place / file, length)
                for file, length in zip(
                    splits[split].filenames, splits[split].shard_lengths, strict=True
                )
            ]
            for split in splits
        }
        image, label = _keys(name, features, builder.info.supervised_keys)
        shape = _shape(name, features[image])
        n_classes = checks.whole("the number of classes", features[label].num_classes)
        sources = _splits(name, shards)
    for file, _ in (shard for split in sources.values() for shard in shards[split]):
        if not file.is_file():
            raise ValueError(f"{file} is missing; " + how_to_prepare(name, folder))

    def read(split: str) -> Iterator[Item]:
        return _records(builder, sources[split], shards[sources[split]], image, label)

    return Encoded(
        name=place.relative_to(folder).as_posix(),
        root=place,
        files=tuple(path for path in place.iterdir() if path.is_file()),
        sizes={ours: sum(n for _, n in shards[theirs]) for ours, theirs in sources.items()},
        shape=shape,
        shape_of="the shape in features.json",
        n_classes=n_classes,
        read=read,
        convert=True,
    )


def _module() -> Any:
    import tensorflow_datasets

    return tensorflow_datasets


def _file_format(place: Path) -> str:
    with reading(f"{place / 'dataset_info.json'} is damaged"):
        return read_object(place / "dataset_info.json").get("fileFormat", "tfrecord")


def _keys(name: str, features: Any, supervised: Any) -> tuple[str, str]:
    kinds = _module().features
    images, labels = (
        sorted(key for key, feature in features.items() if isinstance(feature, kind))
        for kind in (kinds.Image, kinds.ClassLabel)
    )
    if supervised and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        f"data is {name!r}, with the images {images} and the labels {labels}; an image "
        "classification set with one of each, or that says which, is needed"
    )


def _shape(name: str, feature: Any) -> tuple[int, int, int]:
    shape = feature.shape
    if None in shape:
        raise ValueError(
            f"data is {name!r}, whose images have no fixed shape ({shape}); resize them and load "
            "them as a folder of images"
        )
    if math.prod(shape[:2]) > MOST_PIXELS:
        raise ValueError(
            f"data is {name!r}, with images {shape} of more than {MOST_PIXELS:,} pixels"
        )
    dtype = np.dtype(feature.np_dtype)
    if shape[-1] not in MODES or dtype != np.uint8:
        raise ValueError(
            f"data is {name!r}, with {dtype} images of {shape[-1]} channels; "
            f"uint8 with {', '.join(map(str, MODES))} is allowed"
        )
    return shape


def _splits(name: str, shards: dict) -> dict[str, str]:
    held_out = [split for split in ("test", "validation") if split in shards]
    if "train" not in shards or not held_out:
        raise ValueError(
            f"data is {name!r}, with the splits {sorted(shards)}; train and test (or validation) "
            "are needed"
        )
    if others := sorted(shards.keys() - {"train", held_out[0]}):
        notice(f"{name}: train and {held_out[0]} are read; {', '.join(others)} is not")
    return {"train": "train", "val": held_out[0]}


def _records(builder: Any, split: str, shards: list, image: str, label: str) -> Iterator[Item]:
    # Images stay encoded here: decoding them in threads is ours, and so are its errors.
    skip = {image: _module().decode.SkipDecoding()}
    with reading(f"{builder.data_path}: split {split}"):
        source = builder.as_data_source(split, decoders=skip)
    first = 0
    for file, length in shards:
        for start in range(first, first + length, _CHUNK):
            numbers = range(start, min(start + _CHUNK, first + length))
            with reading(f"{file} is damaged or no ArrayRecord file"):
                records = [(r[image], int(r[label])) for r in source.__getitems__(list(numbers))]
            for number, (data, value) in zip(numbers, records, strict=True):
                yield f"record {number - first} of {file}", data, value
        first += length
