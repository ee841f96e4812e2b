"""A store that was written before the files of `exact` were arranged anew is read as it was."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.core.disk import DamagedError
from jaxunlearn.exact import examples, material, service, settings
from jaxunlearn.exact.store import Store

LOGITS = [  # of the first validation images, by the program that wrote the store
    [0.069939, -0.04388, 0.024058, -0.115815, -0.068671]
    + [-0.077582, -0.008323, -0.249018, -0.227913, -0.146917],
    [0.06867, -0.043551, 0.02283, -0.115744, -0.069258]
    + [-0.078312, -0.008639, -0.247965, -0.225568, -0.147358],
]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(Path(__file__).parent / "stores" / "digits", tmp_path / "store"))


def test_its_status_is_what_it_was_and_it_deletes(folder):
    store = Store(folder)
    status = store.status()
    assert status["head"].startswith("2cf7770473d77445") and status["entries"] == 5
    assert (status["examples"], status["deleted"], status["empty_slices"]) == (42, 2, 0)
    assert status["stages_left"] == [[0, 1], [2, 2]]
    assert status["serves"] == {"order": [1, 0], "depth": [1, 2]}
    assert status["expected_requests_when_new"] == pytest.approx(25 / 3)
    assert store.deleted == {"train-0": 2, "train-5": 4}
    first, again = store.delete(["train-1", "train-0"])
    assert not first.repeated and again.repeated and again.entry == 2
    assert Store(folder).deleted == {"train-0": 2, "train-5": 4, "train-1": 5}


def test_it_answers_as_it_did_and_knows_its_examples(folder):
    store = service.Service(folder)
    x, y = material.test_of(store)
    assert len(y) == 20
    np.testing.assert_allclose(store.predict(x[:2]), LOGITS, atol=1e-5)
    assert store.verify() == {"entries": 5, "orders": 4, "prefix": None}
    ids, arrays = material.examples_of(store)
    rows, places = examples.remaining(store.files, store.config, arrays, ids, store.deleted)
    assert len(rows["y"]) == len(places) == 40
    assert settings.settings_of(store).sizes == settings.Sizes(8, 2, 2, 8)
    file = folder / "orders" / "00004.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="00004.npz is damaged"):
        store.verify()
