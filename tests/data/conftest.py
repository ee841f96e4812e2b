import functools

import pytest
from PIL import Image

from tests import prepared_sets
from tests.prepared_sets import random_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache or prepared sets unless it says so."""
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    """Writes a small prepared set, see `prepared_sets.make`, in a folder of the test."""
    return functools.partial(prepared_sets.make, tmp_path / "prepared")
