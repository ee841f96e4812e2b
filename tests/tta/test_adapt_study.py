import dataclasses
import json

import numpy as np
import pytest

from jaxunlearn import nn, tta
from jaxunlearn.core import records, tree
from jaxunlearn.core.study import Where
from jaxunlearn.tta.settings import Settings, Training

SMALL = Settings(
    n_train=120,
    n_val=24,
    batch_size=10,
    corruptions=("gaussian_noise", "contrast"),
    n_seeds=2,
    training=Training(epochs=2),
)
METHODS = ("bn", "tent")


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("adapt") / "whole"
    seen = []
    results = tta.study.run(SMALL, METHODS, out=out, progress=lambda *call: seen.append(call))
    return results, out, seen


def test_results_have_errors_by_method_seed_and_domain(whole):
    results, out, seen = whole
    assert results["domains"] == [["gaussian_noise", 5], ["contrast", 5]]
    assert set(results["errors"]) == {"source", *METHODS}
    for kind in ("errors", "entropy", "agreement"):
        assert all(np.shape(of) == (2, 2) for of in results[kind].values())
    assert (np.array(results["agreement"]["source"]) == 1).all()
    assert results["error"]["tent"]["stderr"] is not None
    assert all(all(of) for of in results["finite"].values())
    assert results["drift"]["bn"] == [[0.0], [0.0]] and min(results["drift"]["tent"])[0] > 0
    assert json.loads((out / "results.json").read_text()) == results
    assert {phase for phase, *_ in seen} == {"training", "images", "source", *METHODS}
    assert not list((out / "phases").glob("*"))


def test_a_run_that_was_interrupted_anywhere_resumes_to_the_same_results(whole, tmp_path):
    results, _, seen = whole
    for moment in range(3, len(seen), 3):
        count, out = 0, tmp_path / str(moment)

        def stop(*call, moment=moment):
            nonlocal count
            count += 1
            if count == moment:
                raise Stop

        with pytest.raises(Stop):
            tta.study.run(SMALL, METHODS, out=out, progress=stop)
        again = tta.study.run(SMALL, METHODS, out=out, resume=True)
        for kind in ("errors", "entropy", "agreement", "drift", "clean_error"):
            assert again[kind] == results[kind]


def test_labels_never_matter(whole, tmp_path, monkeypatch):
    """With all validation labels wrong by one, answers and entropies are the same."""
    load = tta.study.datasets.load

    def relabelled(*args, **kwargs):
        dataset = load(*args, **kwargs)
        return dataclasses.replace(dataset, y_val=(dataset.y_val + 1) % 10)

    monkeypatch.setattr(tta.study.datasets, "load", relabelled)
    other = tta.study.run(SMALL, METHODS, out=tmp_path / "other")
    results = whole[0]
    assert other["entropy"] == results["entropy"] and other["agreement"] == results["agreement"]
    assert other["errors"] != results["errors"]


def test_a_network_of_ones_own_and_windows(whole, tmp_path):
    _, out, _ = whole
    kept = records.read(out / "settings.json")
    assert kept["settings"]["network"] == "wrn-10-1"
    store = tta.study.prepare(SMALL, Where(out, resume=True), METHODS)
    store.folder.end()
    params = store.folder.lanes("training").read(0)
    own = tta.source_network.Trained(store.network.model, params["params"], params["stats"])
    written = nn.classifiers.from_pretrained(out / "network.safetensors", "wrn-10-1")
    assert tree.digest(written.params) == tree.digest(own.params)
    settings = dataclasses.replace(SMALL, window=6, n_seeds=1, corruptions=("contrast",))
    results = tta.study.run(settings, ("tent",), out=tmp_path / "own", network=own)
    assert np.shape(results["errors"]["tent"]) == (1, 1)
    assert results["seconds"].keys() == {"images", "source", "tent"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corruptions": ("fogg",)}, "corruptions is 'fogg'; gaussian_noise"),
        ({"severity": 6}, "severity is 6; 1 to 5 are allowed"),
        ({"setting": "sorted"}, "setting is 'sorted'; continual"),
        ({"batch_size": 1}, "batch_size is 1, .* give window"),
        ({"network": "wrn-11-1"}, "depth is 11"),
        ({"batch_shards": 3}, "batch_shards is 3, which does not divide"),
        ({"delta": 0.5}, "delta is 0.5 in the setting 'continual'"),
        ({"seed": -1}, "seed is -1"),
        ({"n_val": 10**6}, "n_val is 1000000"),
    ],
)
def test_settings_that_do_not_fit_are_named_and_nothing_is_written(change, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        tta.study.run(dataclasses.replace(SMALL, **change), METHODS, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (("tint",), (), "methods is 'tint'; source"),
        (("tent",), ("tent.rate=1",), "tent has no setting 'rate'; it has learning_rate"),
        (("tent",), ("rmt.ema=1",), "the methods of this run are source, tent"),
        (("tent",), ("tent=1",), "METHOD.SETTING=VALUE is needed"),
        (("tent",), ("tent.learning_rate=fast",), "learning_rate is 'fast'; a number is needed"),
        (("tent",), ("tent.optimizer=rmsprop",), "optimizer is 'rmsprop'; adam, sgd"),
    ],
)
def test_methods_and_settings_that_there_are_not_are_named(names, changes, message):
    with pytest.raises(ValueError, match=message):
        tta.choice.chosen(names, changes)


def test_settings_of_methods_are_read_from_text():
    chosen = tta.choice.chosen(("tent",), ("tent.learning_rate=0.01", "tent.optimizer=sgd"))
    assert list(chosen) == ["source", "tent"]
    assert (chosen["tent"].learning_rate, chosen["tent"].optimizer) == (0.01, "sgd")
    assert tta.choice.record(chosen["tent"])["nesterov"] is True
