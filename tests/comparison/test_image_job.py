"""The main job on images of one's own: integers, a small network, augmentation."""

import json

import numpy as np
import pytest

from jaxunlearn import comparison
from jaxunlearn.comparison.study import Settings
from jaxunlearn.unlearn import METHODS
from jaxunlearn.unlearn.scratch import Training


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes, dark and bright: anything that learns tells them apart."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.integers(0, 120, (120, 16, 16, 3)) + 130 * y[:, None, None, None]
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path


def settings(images, **changes):
    plain = {
        "data": str(images),
        "model": "small_cnn",
        "multiply_adds": 60_000,
        "n_train": 80,
        "forget": "random",
        "forget_size": 8,
        "n_models": 2,
        "lane_width": 1,
        "training": Training(epochs=4, batch_size=20, augment=("flip", "cutout")),
    }
    return Settings(**plain | changes)


@pytest.mark.slow
def test_a_small_network_learns_images_of_integers(images, tmp_path):
    methods = {"ascent": METHODS["ascent"]}
    results = comparison.run(settings(images), methods, out=tmp_path / "run")
    accuracy = results["methods"]["none"]["accuracy"]
    assert accuracy["val"] > 0.9
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]
    assert (recorded["n_train"], recorded["n_val"]) == (80, 40)  # what "all" came to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiply_adds": 10}, "multiply_adds is 10"),
        ({"model": "vgg"}, "model is 'vgg'.*small_cnn, resnet9, .* or wrn-DEPTH-WIDTH"),
        ({"model": "wrn-11-1"}, "depth is 11"),
        ({"n_val": 41}, "n_val is 41; .* 1 to 40"),
        ({"training": Training(augment=("flip", "rotate"))}, "augment has 'rotate'; known"),
        ({"data": "no/such/place"}, "data is 'no/such/place'; known data sets: digits"),
    ],
)
def test_bad_settings_write_nothing(changes, message, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        comparison.run(settings(images, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
