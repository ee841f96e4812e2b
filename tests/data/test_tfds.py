import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.data import _tfds
from jaxunlearn.data._decode import pixels

REAL = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
FOLDER = Path(os.environ.get("TFDS_DATA_DIR", "no TFDS_DATA_DIR"))
COMMAND = "tfds build {} --file_format=array_record --data_dir={}"


def real(name):
    place = _tfds.find(name, FOLDER)
    if place is None:  # a fresh clone has no data sets; CI sets the folder, where nothing skips
        pytest.skip(f"{name} is not prepared in {FOLDER}")
    return place


def test_a_prepared_set_is_read_shard_after_shard(make_prepared):
    folder, images = make_prepared()
    found = data.load("tiny", data_dir=folder)
    np.testing.assert_array_equal(found.x_train, images["train"])
    np.testing.assert_array_equal(found.x_val, images["test"])
    np.testing.assert_array_equal(found.y_train, range(7))
    assert found.x_train.dtype == np.uint8 and found.y_val.dtype == np.int32
    assert found.n_classes == 10


def test_a_part_is_the_beginning_of_a_fixed_permutation(make_prepared):
    folder, images = make_prepared()
    order = np.random.default_rng(0).permutation(7)
    for n in (2, 5):
        found = data.load("tiny", n, 1, data_dir=folder)
        np.testing.assert_array_equal(found.x_train, images["train"][order[:n]])
        np.testing.assert_array_equal(found.y_train, order[:n])
        assert len(found.x_val) == len(found.y_val) == 1


def test_the_newest_version_a_given_one_and_configs(make_prepared, monkeypatch):
    folder, _ = make_prepared(version="1.9.0")
    _, newest = make_prepared(version="1.10.0", shape=(3, 3, 1))
    make_prepared(version="incomplete.ABC_2.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    np.testing.assert_array_equal(data.load("tiny").x_train, newest["train"])
    assert data.load("tiny:1.9.0").x_train.shape == (7, 6, 5, 3)
    (folder / "tiny").rename(folder / "small")
    (folder / "tiny").mkdir()
    (folder / "small").rename(folder / "tiny" / "small")
    assert data.load("tiny/small").x_train.shape == (7, 3, 3, 1)
    assert data.load("tiny/small:1.9.0").x_train.shape == (7, 6, 5, 3)
    assert _tfds.prepared(folder) == ["tiny/small"]


def test_validation_stands_in_for_test(make_prepared):
    folder, images = make_prepared(splits=("train", "validation"))
    np.testing.assert_array_equal(data.load("tiny", data_dir=folder).x_val, images["validation"])


def test_unknown_and_unprepared_names(make_prepared, own_cache):
    folder, _ = make_prepared()
    with pytest.raises(ValueError, match=r"'cats'; known data sets: digits, .*\(tiny\)"):
        data.load("cats", data_dir=folder)
    command = re.escape(COMMAND.format("svhn_cropped", folder))
    with pytest.raises(ValueError, match=rf"prepared there: tiny\); .*tensorflow.*{command}"):
        data.load("svhn_cropped", data_dir=folder)
    assert not own_cache.exists()


EXTRA = {"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
         "classLabel": {"numClasses": "2"}}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tfrecord"}, "as tfrecord, which cannot be read at random; .*tfds build tiny"),
        ({"told": (-1, -1, 3)}, r"no fixed shape \(\(None, None, 3\)\); resize them"),
        ({"told": (6, 5, 2)}, "uint8 images of 2 channels; uint8 with 1, 3, 4"),
        ({"told": (6, 6, 3)}, "record 0 of .* is 5x6 with 3 channels, but the shape in features"),
        ({"splits": ("train", "extra")}, r"splits \['extra', 'train'\]; train and test"),
        ({"labels": [0, 1, -1, 3]}, "record 2 of .* has the label -1; allowed are 0 to 9"),
        ({"features": {"other": EXTRA}}, r"the labels \['label', 'other'\]; .* one of each"),
    ],
)
def test_sets_that_cannot_be_used(make_prepared, own_cache, changes, message):
    folder, _ = make_prepared(**changes)
    with pytest.raises(ValueError, match=message):
        data.load("tiny", data_dir=folder)
    assert not list(own_cache.glob("[!.]*"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, None), "n_train is 8; tiny allows 1 to 7"),
        ((None, 3), "n_val is 3; tiny allows 1 to 2"),
        ((0, 1), "n_train is 0"),
    ],
)
def test_sizes_are_checked_before_decoding(make_prepared, own_cache, sizes, message):
    folder, _ = make_prepared()
    with pytest.raises(ValueError, match=message):
        data.load("tiny", *sizes, data_dir=folder)
    assert not own_cache.exists()


def test_damaged_files_are_named(make_prepared, own_cache):
    folder, _ = make_prepared()
    file = folder / "tiny/1.0.0/tiny-train.array_record-00001-of-00002"
    whole = file.read_bytes()
    for part in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", b"hello" * 20000):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=f"{file} is damaged or no ArrayRecord file"):
            data.load("tiny", data_dir=folder)
    # A sound file of another length.
    file.write_bytes((file.with_name("tiny-test.array_record-00000-of-00001")).read_bytes())
    with pytest.raises(ValueError, match="is damaged|cannot be read"):
        data.load("tiny", data_dir=folder)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        data.load("tiny", data_dir=folder)
    for name in ("features.json", "dataset_info.json"):
        other = folder / "tiny/1.0.0" / name
        other.write_text(other.read_text()[:40])
        with pytest.raises(ValueError, match=f"{other.parent}.*(damaged|cannot be read)"):
            data.load("tiny", data_dir=folder)
    assert not list(own_cache.glob("[!.]*"))


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_records_are_decoded_as_by_their_own_reader(name):
    import tensorflow_datasets as tfds

    place = real(name)
    encoded = _tfds.open_prepared(name, place, FOLDER)
    assert encoded.shape == REAL[name] and encoded.n_classes == 10
    direct = tfds.builder_from_directory(place).as_data_source("test")
    for theirs, item in zip(
        (direct[i] for i in range(20)), itertools.islice(encoded.read("val"), 20), strict=True
    ):
        np.testing.assert_array_equal(pixels(*item[:2]), theirs["image"])
        assert item[2] == theirs["label"]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sets(name, tmp_path_factory):
    real(name)
    found = data.load(name, data_dir=FOLDER, cache_dir=tmp_path_factory.getbasetemp() / "real")
    n, m = (50_000, 10_000) if name == "cifar10" else (60_000, 10_000)
    assert found.x_train.shape == (n, *REAL[name]) and found.x_val.shape == (m, *REAL[name])
    assert found.x_train.dtype == np.uint8 and found.n_classes == 10
    counts = np.bincount(found.y_train)
    if name == "mnist":
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    else:
        assert (
            counts.tolist() == [n // 10] * 10 and np.bincount(found.y_val).tolist() == [1000] * 10
        )
