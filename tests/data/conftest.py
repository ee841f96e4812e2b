import io
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache or prepared sets unless it says so."""
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(n, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def make_folder(tmp_path):
    """Writes PNG images `folder/[split/]class/number.png`; returns the folder and the images."""

    def make(splits=("train", "test"), classes=("cat", "dog"), n=3, shape=(6, 5, 3), name="pets"):
        images = {}
        for i, split in enumerate(splits):
            for j, label in enumerate(classes):
                place = tmp_path / name / split / label
                place.mkdir(parents=True, exist_ok=True)
                images[split, label] = random_images(n, shape, 10 * i + j)
                for k, image in enumerate(images[split, label]):
                    Image.fromarray(image.squeeze()).save(place / f"{k:03d}.png")
        return tmp_path / name, images

    return make


@pytest.fixture
def make_prepared(tmp_path):
    """Writes a small prepared set with an ArrayRecord file per shard; returns folder and images."""

    def make(name="tiny", version="1.0.0", shards=((4, 3), (2,)), shape=(6, 5, 3), **changes):
        place = tmp_path / "prepared" / name / version
        place.mkdir(parents=True)
        splits, images = changes.get("splits", ("train", "test")), {}
        for i, (split, lengths) in enumerate(zip(splits, shards, strict=True)):
            images[split] = random_images(sum(lengths), shape, i)
            first = 0
            for k, length in enumerate(lengths):
                file = f"{name}-{split}.array_record-{k:05d}-of-{len(lengths):05d}"
                labels = changes.get("labels", range(first, first + length))
                _records(place / file, images[split][first : first + length], labels)
                first += length
        told = list(changes.get("told", shape))
        features = {
            "image": _feature("image_feature.Image", image={"dtype": "uint8", "shape": {
                "dimensions": [str(size) for size in told]}}),
            "label": _feature("class_label_feature.ClassLabel", classLabel={"numClasses": "10"}),
        }  # fmt: skip
        features |= changes.get("features", {})
        info = {
            "name": name, "version": version, "fileFormat": changes.get("format", "array_record"),
            "splits": [
                {"name": split, "shardLengths": [str(n) for n in lengths], "numBytes": "1000",
                 "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
                for split, lengths in zip(splits, shards, strict=True)
            ],
        }  # fmt: skip
        (place / "dataset_info.json").write_text(json.dumps(info))
        root = _feature("features_dict.FeaturesDict", featuresDict={"features": features})
        (place / "features.json").write_text(json.dumps(root))
        return tmp_path / "prepared", images

    return make


def _feature(kind, **content):
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **content}


def _records(path, images, labels):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image, label in zip(images, labels, strict=False):
        data = io.BytesIO()
        Image.fromarray(image.squeeze()).save(data, "PNG")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(data.getvalue())
        example.features.feature["label"].int64_list.value.append(int(label))
        writer.write(example.SerializeToString())
    writer.close()
