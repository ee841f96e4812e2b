"""Small sets as tensorflow_datasets prepares them."""

import io
import json

import numpy as np
from PIL import Image


def random_images(n, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def make(folder, name="tiny", version="1.0.0", shards=((4, 3), (2,)), shape=(6, 5, 3), **changes):
    """Writes a small prepared set with an ArrayRecord file per shard; returns folder and images."""
    place = folder / name / version
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
    return folder, images


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
