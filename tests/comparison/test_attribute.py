"""The attribution job."""

import dataclasses
import shutil

import numpy as np
import pytest

from jaxunlearn import evaluate
from jaxunlearn.attribution import datamodels
from jaxunlearn.comparison import attribute
from jaxunlearn.core import losses
from jaxunlearn.unlearn.scratch import Training

TINY = attribute.Settings(
    n_train=100, n_val=80, members=200, held_out=40, checkpoints=2, features=64, targets=(3, 7),
    shown=2, training=Training(epochs=6, batch_size=20),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    seen = []
    results = attribute.run(TINY, out=out, progress=lambda *p: seen.append(p))
    return out, results, seen


def test_datamodels_predict_members_that_they_were_not_fitted_to(finished):
    out, results, seen = finished
    lds = results["lds"]
    assert lds["datamodel"]["mean"] > 0.25 and lds["trak"]["mean"] > 0.05
    assert lds["datamodel"]["points"] == lds["trak"]["points"] == 80
    with np.load(out / "datamodel.npz") as file:
        weights, intercept = file["weights"], file["intercept"]
    assert weights.shape == (100, 80) and intercept.shape == (80,)
    # The same from the stored members.
    store = {
        phase: [np.load(out / "lanes" / phase / f"{name}.npy") for name in ("masks", "outputs")]
        for phase in ("members", "held_out")
    }
    y = np.load(out / "trak.npz")["scores"]
    assert y.shape == (100, 80)
    from jaxunlearn import data

    labels = data.load("digits", 100, 80).y_val
    (masks, outputs), (judges, measured) = store.values()
    margins = [np.asarray(losses.margins(a[:, 100:], labels)) for a in (outputs, measured)]
    again = datamodels.fit(masks, margins[0])
    np.testing.assert_allclose(again.weights, weights, atol=1e-6)
    scores = evaluate.lds(weights, judges, margins[1])
    assert lds["datamodel"]["mean"] == pytest.approx(np.nanmean(scores))
    assert not (masks[:, None] == judges[None]).all(2).any()  # no subset both fits and judges
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["members", "held_out", "checkpoints", "trak", "regression"]


def test_the_extremes_are_those_of_the_weights(finished):
    out, results, _ = finished
    with np.load(out / "datamodel.npz") as file:
        weights = file["weights"]
    for target, at in zip(results["targets"], (3, 7), strict=True):
        assert target["index"] == at
        own = weights[:, at]
        assert [row["effect"] for row in target["helpful"]] == sorted(own)[::-1][:2]
        assert [row["effect"] for row in target["harmful"]] == sorted(own)[:2]
        assert own[target["helpful"][0]["index"]] == own.max()
    # Helpful examples are of the target's own class, as a rule.
    same = [r["label"] == t["label"] for t in results["targets"] for r in t["helpful"]]
    assert np.mean(same) >= 0.5


def test_stopped_anywhere_it_goes_on_to_the_same_numbers(finished, tmp_path):
    _, results, _ = finished
    for phase in ("members", "held_out", "trak"):

        def stop(now, done, total, phase=phase):
            if now == phase and done > 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attribute.run(TINY, out=tmp_path / "run", resume=True, progress=stop)
    again = attribute.run(TINY, out=tmp_path / "run", resume=True)
    assert again["lds"] == results["lds"] and again["targets"] == results["targets"]


def test_what_is_read_off_the_members_may_change(finished, tmp_path):
    out, results, _ = finished
    shutil.copytree(out, tmp_path / "run")
    other = dataclasses.replace(TINY, targets=(0, 1, 2), shown=4, method="difference")
    trained = []
    again = attribute.run(
        other, out=tmp_path / "run", resume=True, progress=lambda *p: trained.append(p)
    )
    assert ("members", 0, 200) not in trained
    assert len(again["targets"]) == 3 and len(again["targets"][0]["harmful"]) == 4
    assert again["lds"]["trak"] == results["lds"]["trak"]
    assert again["lds"]["datamodel"] != results["lds"]["datamodel"]
    with pytest.raises(ValueError, match="members = 200, but now it is 300"):
        attribute.run(dataclasses.replace(TINY, members=300), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": (80,)}, "targets has 80; there are validation points 0 to 79"),
        ({"targets": ()}, "targets is empty"),
        ({"shown": 51}, "shown is 51"),
        ({"held_out": 2}, "held_out is 2; it must be at least 3"),
        ({"members": 5}, "members is 5"),
        ({"subset_fraction": 0.1}, "subset_fraction is 0.1: subsets of 10"),
        ({"method": "ols"}, "method is 'ols'"),
        ({"checkpoints": -1}, "checkpoints is -1"),
        ({"l2": 0.0}, "l2 is 0.0"),
        ({"model": "vgg"}, "model is 'vgg'"),
        ({"training": Training(batch_size=0)}, "training.batch_size is 0"),
    ],
)
def test_bad_settings_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        attribute.run(dataclasses.replace(TINY, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
