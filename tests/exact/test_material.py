"""Where a store's examples come from, and what they leave behind."""

import tempfile

import numpy as np
from PIL import Image

from jaxunlearn.exact import material, settings


def test_images_of_a_store_are_decoded_on_no_disk(tmp_path, monkeypatch):
    """Wherever a process is killed, nothing of a deleted image is left behind."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(tmp_path / "photos" / split / name / f"{i}.png")
    places = [tmp_path / name for name in ("home", "tmp", "cache")]
    for variable, place in zip(("HOME", "TMPDIR", "XDG_CACHE_HOME"), places, strict=True):
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(places[1]))
    monkeypatch.delenv("JAXUNLEARN_CACHE", raising=False)
    seen, real = [], material.scaled

    def scaled(*arguments):
        seen.append([list(place.rglob("*")) for place in places])
        return real(*arguments)

    monkeypatch.setattr(material, "scaled", scaled)
    sizes = settings.Sizes(8, 2, 2, 8, patches=2)
    read = material.read(settings.Settings(data=str(tmp_path / "photos"), sizes=sizes))
    assert read.examples["x"].shape[1:] == (8, 8, 3)
    assert seen == [[[], [], []]] * 2
