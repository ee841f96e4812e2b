"""Matching methods inside a comparison: their targets, where these come from and what they cost."""

import dataclasses
import shutil

import numpy as np
import pytest

from jaxunlearn import comparison
from jaxunlearn.attribution import datamodels
from jaxunlearn.comparison import Estimates, Settings
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import METHODS, matching
from jaxunlearn.unlearn.scratch import Training

TINY = Settings(
    n_train=120, n_val=60, n_models=4, lane_width=2, forget_size=5,
    training=Training(epochs=4, batch_size=20), estimates=Estimates(members=30, oracles=3),
)  # fmt: skip
FEW = {
    "dm_direct": METHODS["dm_direct"],
    "dmm": (matching.datamodel_matching, matching.DatamodelMatching(epochs=2, batch_size=40)),
    "oracle_matching": (
        matching.oracle_matching, matching.OracleMatching(epochs=2, batch_size=40, loss="kd"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    seen = []
    results = comparison.run(TINY, FEW, out=out, progress=lambda *p: seen.append(p[0]))
    return out, results, list(dict.fromkeys(seen))


def lanes(out, name):
    store, blocks = BlockStore(out / "lanes" / name), []
    while len(blocks) in store:
        blocks.append(store.read(len(blocks)))
    return {key: np.concatenate([b[key] for b in blocks]) for key in ("logits", "n_gradients")}


def test_the_phases_and_the_costs(finished):
    out, results, phases = finished
    assert phases == [
        "full", "oracle", "targets", "members", "effect", "none", "retrain", "dm_direct", "dmm",
        "oracle_matching", "evaluation",
    ]  # fmt: skip
    rows = results["methods"]
    one = 4 * (115 // 20) * 20
    assert rows["none"]["cost_shared"] == rows["retrain"]["cost_shared"] == 0
    members = 30 * 4 * 60 / one
    assert rows["dmm"]["cost_shared"] == rows["dm_direct"]["cost_shared"] == pytest.approx(members)
    assert rows["oracle_matching"]["cost_shared"] == pytest.approx(3)
    assert rows["dmm"]["cost"] == pytest.approx(2 * 25 * 5 / one)
    for row in rows.values():
        assert set(row["tests"]["forget"]) == {
            "ks", "ks_below_5_percent", "welch_below_5_percent", "renyi_2"
        }  # fmt: skip
        assert row["ulira"] is None  # biased with so few models


def test_dm_direct_subtracts_the_datamodels_effect(finished):
    out, results, _ = finished
    masks = np.load(out / "lanes" / "members" / "masks.npy")
    assert masks.shape == (30, 120) and (masks.sum(1) == 60).all()
    outputs = np.load(out / "lanes" / "members" / "outputs.npy")
    forget = np.array(results["forget_set"]["indices"])
    effect = datamodels.fit(masks, outputs.reshape(30, -1)).effect(forget).reshape(-1, 10)
    full, direct = (lanes(out, name)["logits"] for name in ("full", "methods/dm_direct"))
    np.testing.assert_allclose(direct, full - effect, atol=2e-5)


def test_targets_are_other_oracles_than_those_that_judge(finished):
    out, _, _ = finished
    targets, judges = (lanes(out, name)["logits"] for name in ("targets", "oracle"))
    assert targets.shape == (3, 180, 10)
    gaps = np.abs(targets[:, None] - judges[None]).max((2, 3))
    assert gaps.min() > 0.1


def test_stopped_among_the_members_it_goes_on_to_the_same_numbers(finished, tmp_path):
    out, results, _ = finished

    def stop(phase, done, total):
        if phase == "members" and done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(TINY, FEW, out=tmp_path / "run", progress=stop)
    assert np.load(tmp_path / "run" / "lanes" / "members" / "completed.npy").sum() == 10
    again = comparison.run(TINY, FEW, out=tmp_path / "run", resume=True)
    for name, row in results["methods"].items():
        for key in ("klom", "accuracy", "epsilon", "cost"):
            assert again["methods"][name][key] == row[key]


def test_members_serve_another_forget_set(finished, tmp_path):
    out, _, _ = finished
    settings = dataclasses.replace(TINY, forget="random")
    comparison.prepare(settings, Where(tmp_path / "run"), FEW)
    for name in ("full", "members"):
        shutil.copytree(out / "lanes" / name, tmp_path / "run" / "lanes" / name)
    trained = []
    results = comparison.run(
        settings, {"dm_direct": FEW["dm_direct"]}, out=tmp_path / "run", resume=True,
        progress=lambda phase, done, total: trained.append((phase, done)),
    )  # fmt: skip
    assert ("members", 30) in trained and ("members", 0) not in trained
    assert results["forget_set"]["kind"] == "random"


def test_a_store_of_another_run_is_refused(finished, tmp_path):
    out, _, _ = finished
    settings = dataclasses.replace(TINY, seed=3)
    comparison.prepare(settings, Where(tmp_path / "run"), FEW)
    shutil.copytree(out / "lanes" / "members", tmp_path / "run" / "lanes" / "members")
    with pytest.raises(ValueError, match="masks_sha256"):
        comparison.run(settings, FEW, out=tmp_path / "run", resume=True)


def test_trak_in_place_of_datamodels(tmp_path):
    settings = dataclasses.replace(
        TINY, estimates=Estimates(attribution="trak", checkpoints=2, features=64)
    )
    results = comparison.run(settings, {"dm_direct": FEW["dm_direct"]}, out=tmp_path / "run")
    assert not (tmp_path / "run" / "lanes" / "members").exists()
    effect = BlockStore(tmp_path / "run" / "lanes" / "effect").read(0)["effect"]
    assert effect.shape == (180, 10)
    # Presence raises the logit of a forget point's own class and lowers the others, on average.
    forget = results["forget_set"]["indices"]
    own = effect[forget, 8]
    assert own.mean() > 0 and own.mean() > effect[forget].mean()
    one = 4 * (115 // 20) * 20
    cost = results["methods"]["dm_direct"]["cost_shared"]
    assert cost == pytest.approx(2 * (120 + 10 * 180) / one)


def test_an_oracle_of_its_own_for_each_model(tmp_path):
    method, own = FEW["oracle_matching"]
    exact = dataclasses.replace(own, epochs=40, learning_rate=0.02, loss="mse")
    settings = dataclasses.replace(TINY, estimates=Estimates(oracles=0))
    results = comparison.run(settings, {"oracle_matching": (method, exact)}, out=tmp_path / "run")
    row = results["methods"]["oracle_matching"]
    assert row["cost_shared"] == pytest.approx(4)  # as many as models
    matched, targets = (
        lanes(tmp_path / "run", name)["logits"] for name in ("methods/oracle_matching", "targets")
    )
    forget = results["forget_set"]["indices"]
    gaps = np.abs(matched[:, None, forget] - targets[None, :, forget]).mean((2, 3))
    np.testing.assert_array_equal(gaps.argmin(1), np.arange(4))


def test_a_variant_of_a_method_is_the_same_course(finished, tmp_path):
    out, _, _ = finished
    method, own = FEW["dmm"]
    methods = {f"dmm@{e}": (method, dataclasses.replace(own, epochs=e)) for e in (1, 2)}
    comparison.prepare(TINY, Where(tmp_path / "run"), methods)
    for name in ("full", "oracle", "effect", "methods/retrain"):
        shutil.copytree(out / "lanes" / name, tmp_path / "run" / "lanes" / name)
    results = comparison.run(TINY, methods, out=tmp_path / "run", resume=True)
    whole, part = (lanes(tmp_path / "run", f"methods/dmm@{e}")["logits"] for e in (2, 1))
    np.testing.assert_array_equal(whole, lanes(out, "methods/dmm")["logits"])
    assert np.abs(whole - part).max() > 1e-3
    assert results["methods"]["dmm@1"]["cost"] == results["methods"]["dmm@2"]["cost"] / 2


def estimates(**changes):
    return dataclasses.replace(TINY, estimates=dataclasses.replace(TINY.estimates, **changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (estimates(members=9), "estimates.members is 9; at least 10"),
        (
            estimates(subset_fraction=0.1),
            "estimates.subset_fraction is 0.1: subsets of 12 of 120 points, fewer than",
        ),
        (estimates(subset_fraction=1.0), "estimates.subset_fraction is 1.0"),
        (estimates(subset_fraction=1 - 1e-14), "a part of the 120 points is needed"),
        (estimates(members=10**9), "members is 1000000000: their logits on 180 points take"),
        (estimates(oracles=-1), "estimates.oracles is -1"),
        (estimates(attribution="lissa"), "estimates.attribution is 'lissa'"),
        (estimates(attribution="trak", checkpoints=5), "estimates.checkpoints is 5; 1 to n_models"),
        (estimates(attribution="trak", checkpoints=2, l2=0.0), "estimates.l2 is 0.0"),
        (
            dataclasses.replace(TINY, forget_size=6),
            "dmm.retain_multiplier is 20.0: 120 points for 6 to forget, but the retain set has 114",
        ),
    ],
)
def test_bad_settings_write_nothing(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        comparison.run(settings, FEW, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_loss_is_refused_before_anything_is_trained(tmp_path):
    wrong = matching.DatamodelMatching(loss="mae")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dmm.loss is 'mae'; it must be mse, ce, kd"):
        comparison.run(TINY, {"dmm": (matching.datamodel_matching, wrong)}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
