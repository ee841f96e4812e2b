import dataclasses
import functools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import comparison, core, nn
from jaxunlearn.comparison import Settings
from jaxunlearn.core import ensemble
from jaxunlearn.core.checks import NonFiniteError
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import METHODS, Unlearned, baselines
from jaxunlearn.unlearn.scratch import Training

TINY = Settings(
    n_train=200, n_models=5, lane_width=2, forget_size=8, training=Training(epochs=2, batch_size=40)
)
FEW = {name: METHODS[name] for name in ("ascent", "ssd")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    seen = []
    results = comparison.run(TINY, FEW, out=out, progress=lambda *p: seen.append(p))
    return out, results, seen


def same_numbers(one, other):
    strip = lambda r: [  # noqa: E731
        {k: v for k, v in row.items() if "seconds" not in k} for row in r["methods"].values()
    ]
    assert strip(one) == strip(other)
    assert one["floor"] == other["floor"]


def test_the_results_have_their_schema(finished):
    out, results, seen = finished
    assert json.loads((out / "results.json").read_text()) == results
    assert results["schema"] == 1 and results["n_models"] == 5
    assert list(results["methods"]) == ["none", "retrain", "ascent", "ssd"]
    for row in results["methods"].values():
        assert set(row["klom"]) == set(row["accuracy"]) == {"forget", "retain", "val"}
        for group in row["klom"].values():
            assert set(group) == {"mean", "p50", "p95", "p99"}
            assert 0 <= group["p50"] <= group["p95"] <= group["p99"] <= 12
        assert all(0 <= a <= 1 for a in row["accuracy"].values())
        assert 0 <= row["mia"] <= 1 and 0 <= row["epsilon"] <= 50
        assert row["seconds"] > 0 and row["cost_shared"] == 0
    costs = {name: row["cost"] for name, row in results["methods"].items()}
    assert costs["none"] == 0 and costs["retrain"] == 1
    one_retraining = 2 * (192 // 40) * 40
    assert costs["ascent"] == pytest.approx(3 * 8 / one_retraining)
    assert costs["ssd"] == pytest.approx(208 / one_retraining)
    assert set(results["floor"]["forget"]) == {"mean", "p50", "p95", "p99", "stderr"}
    assert results["forget_set"]["size"] == len(results["forget_set"]["indices"]) == 8
    assert results["settings"]["n_train"] == 200
    assert results["settings"]["methods"]["ascent"]["learning_rate"] == 0.01
    assert {"jax", "numpy", "python", "backend", "device"} <= set(results["versions"])
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["full", "oracle", "none", "retrain", "ascent", "ssd", "evaluation"]
    with np.load(out / "margins.npz") as margins:
        assert set(margins) == {"oracle", *results["methods"]}
        assert margins["ssd"].shape == (5, 1797)


def test_a_stopped_run_goes_on_to_the_same_numbers(finished, tmp_path):
    out, results, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for lost in ("results.json", "lanes/oracle/00001.npz", "lanes/methods/ascent/00002.npz"):
        (copy / lost).unlink()
    shutil.rmtree(copy / "lanes" / "methods" / "ssd")
    resumed = comparison.run(TINY, FEW, out=copy, resume=True)
    same_numbers(results, resumed)
    assert resumed["methods"]["ascent"]["seconds"] > results["methods"]["ascent"]["seconds"]


def test_interrupted_at_any_phase_and_resumed(finished, tmp_path):
    _, results, _ = finished

    class Stop(BaseException):
        pass

    # Phases end and begin at different places: before any member, in the middle, at the end.
    for phase, at in (("full", 2), ("oracle", 0), ("none", 5), ("ascent", 2), ("evaluation", 0)):

        def progress(name, done, total, phase=phase, at=at):
            if name == phase and done >= at:
                raise Stop

        with pytest.raises(Stop):
            comparison.run(TINY, FEW, out=tmp_path / "run", resume=True, progress=progress)
    same_numbers(results, comparison.run(TINY, FEW, out=tmp_path / "run", resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "settings.seed = 0, but now it is 1"),
        ({"lane_width": 3}, "settings.lane_width = 2, but now it is 3"),
        ({"training": Training(epochs=3, batch_size=40)}, "settings.training.epochs = 2"),
        ({"n_models": 6}, "settings.n_models = 5"),
    ],
)
def test_a_resume_with_other_settings_is_refused(finished, changes, message):
    out, _, _ = finished
    before = sorted(p.name for p in out.rglob("*"))
    with pytest.raises(ValueError, match=message):
        comparison.run(dataclasses.replace(TINY, **changes), FEW, out=out, resume=True)
    other = FEW | {"ascent": (METHODS["ascent"][0], baselines.Ascent(learning_rate=0.5))}
    with pytest.raises(ValueError, match="ascent.learning_rate = 0.01, but now it is 0.5"):
        comparison.run(TINY, other, out=out, resume=True)
    assert sorted(p.name for p in out.rglob("*")) == before


def test_folders_that_do_not_fit(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(ValueError, match="holds a run; resume it, or choose another"):
        comparison.prepare(TINY, Where(out), FEW)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        comparison.prepare(TINY, Where(tmp_path, resume=True), FEW)
    with pytest.raises(ValueError, match="which is a file"):
        comparison.prepare(TINY, Where(tmp_path / "thesis.tex"), FEW)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_models": 1}, "n_models is 1; at least 2"),
        ({"lane_width": 0}, "lane_width is 0"),
        ({"batch_shards": 0}, "batch_shards is 0"),
        ({"batch_shards": 3}, "batch_shards is 3; .* divide the batch_size 40"),
        ({"batch_shards": 8}, "which needs 8 devices"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"forget_file": "f.txt"}, "forget_file is 'f.txt', but forget is 'cluster'"),
        ({"training": Training(momentum=1.0)}, "training.momentum is 1.0"),
        ({"data": "cats"}, "data is 'cats'"),
        ({"model": "rnn"}, "model is 'rnn'"),
        ({"forget": "half"}, "forget is 'half'"),
        ({"forget": "file"}, "forget_file is not given"),
        ({"forget_size": 30}, "class 8 has 1. training examples|class 8 has 2. training"),
        ({"forget": "class", "forget_class": 10}, "forget_class is 10"),
        ({"training": Training(epochs=0)}, "training.epochs is 0"),
        ({"training": Training(augment=("flip", "flip"))}, "each can be given once"),
        ({"model": "resnet9"}, "model is 'resnet9', which does not fit inputs of 8 x 8"),
    ],
)
def test_bad_settings_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        comparison.run(dataclasses.replace(TINY, **changes), FEW, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_mesh_that_does_not_fit_the_settings(tmp_path):
    shared = dataclasses.replace(TINY, batch_shards=2)
    for settings, axes in ((shared, {"models": 1}), (TINY, {"lanes": 1})):
        with pytest.raises(ValueError, match="mesh has the shape"):
            comparison.run(settings, FEW, out=tmp_path / "run", mesh=core.mesh.make(axes))
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class Explosion:
    at: int = 3


def explode(model, params, stats, problem, key, *, at):
    losses = jnp.arange(5.0)
    return Unlearned(params, stats, losses.at[at].set(jnp.nan), 5)


def test_a_method_that_diverges_stops_the_run_and_keeps_the_others(tmp_path):
    methods = {
        "ssd": METHODS["ssd"],
        "explode": (explode, Explosion()),
        "ascent": METHODS["ascent"],
    }
    with pytest.raises(NonFiniteError, match="explode: the loss of member 0 is nan at step 3 of 5"):
        comparison.run(TINY, methods, out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["methods"]) == ["none", "retrain", "ssd"]
    assert "explode" in results["failed"]
    assert not list((tmp_path / "run" / "lanes").glob("methods/explode/*.npz"))


def test_after_a_divergence_the_method_can_be_mended_or_left_out(tmp_path):
    broken = {"explode": (explode, Explosion()), "ssd": METHODS["ssd"]}
    with pytest.raises(NonFiniteError):
        comparison.run(TINY, broken, out=tmp_path / "run")
    trained = (tmp_path / "run" / "lanes" / "full" / "00000.npz").stat().st_mtime_ns
    results = comparison.run(TINY, {"ssd": METHODS["ssd"]}, out=tmp_path / "run", resume=True)
    assert list(results["methods"]) == ["none", "retrain", "ssd"] and "failed" not in results

    def mended(*args, at):
        return Unlearned(args[1], args[2], jnp.zeros(at), 0)

    repaired = {"explode": (mended, Explosion(2)), "ssd": METHODS["ssd"]}
    results = comparison.run(TINY, repaired, out=tmp_path / "run", resume=True)
    assert list(results["methods"]) == ["none", "retrain", "explode", "ssd"]
    assert (tmp_path / "run" / "lanes" / "full" / "00000.npz").stat().st_mtime_ns == trained


def test_an_interrupted_run_leaves_no_results(tmp_path):
    def stop(phase, done, total):
        if phase == "ascent":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(TINY, FEW, out=tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("name", ["oracle", "full", "evaluation", "../evil", "a/b", "", ".."])
def test_names_that_a_method_cannot_have(name, tmp_path):
    with pytest.raises(ValueError, match="method name is"):
        comparison.run(TINY, {name: METHODS["none"]}, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"at": 3}, dataclasses.make_dataclass("Thawed", ["at"])(3)])
def test_settings_must_be_a_frozen_dataclass(settings, tmp_path):
    with pytest.raises(ValueError, match="settings of mine are .* frozen dataclass is needed"):
        comparison.run(TINY, {"mine": (explode, settings)}, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_seed_compiles_nothing_again(finished, tmp_path, monkeypatch):
    compiled = []
    real = ensemble.Program.compiled

    def counted(self, *args):
        before = len(self._compiled)
        program = real(self, *args)
        compiled.append(len(self._compiled) - before)
        return program

    monkeypatch.setattr(ensemble.Program, "compiled", counted)
    comparison.run(dataclasses.replace(TINY, seed=5), FEW, out=tmp_path / "run")
    assert len(compiled) >= 18 and sum(compiled) == 0  # some of them ahead


def test_damaged_settings_are_named(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(DamagedError, match="settings.json is damaged"):
        comparison.run(TINY, FEW, out=tmp_path / "run", resume=True)


def test_a_network_of_ones_own_joins_the_comparison(tmp_path):
    mine = dataclasses.replace(TINY, model="mine", n_models=2)
    model = nn.mlp(64, (8,), 10)
    run = functools.partial(comparison.run, mine, {}, out=tmp_path / "a")
    results = run({"mine": model})
    assert list(results["methods"]) == ["none", "retrain"]
    assert "network_sha256" in results["settings"]
    with pytest.raises(ValueError, match="network_sha256"):
        run({"mine": nn.mlp(64, (9,), 10)}, resume=True)
    with pytest.raises(ValueError, match="model is 'mine'; it must be mlp, cnn"):
        comparison.run(mine, {}, out=tmp_path / "b")
    with pytest.raises(ValueError, match=r"gives \(1, 3\) for one input; logits \(1, 10\)"):
        comparison.run(mine, {}, {"mine": nn.mlp(64, (8,), 3)}, out=tmp_path / "b")
    with pytest.raises(ValueError, match="model is 'mine', which cannot read float32 inputs"):
        comparison.run(mine, {}, {"mine": nn.mlp(63, (8,), 10)}, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_method_of_ones_own_joins_the_comparison(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Shrink:
        factor: float = 0.5

    def shrink(model, params, stats, problem, key, *, factor):
        params = {"dense": {**params["dense"], "001": {
            name: leaf * factor for name, leaf in params["dense"]["001"].items()
        }}}  # fmt: skip
        return Unlearned(params, stats, jnp.zeros(0), 0)

    results = comparison.run(TINY, {"shrink": (shrink, Shrink(1.0))}, out=tmp_path / "run")
    none, own = results["methods"]["none"], results["methods"]["shrink"]
    assert own["klom"] == none["klom"] and own["accuracy"] == none["accuracy"]


@pytest.mark.slow
def test_the_default_run_shows_what_it_should(tmp_path):
    results = comparison.run(Settings(), out=tmp_path / "run")
    klom = {name: row["klom"] for name, row in results["methods"].items()}
    assert klom["none"]["forget"]["mean"] >= 5 * klom["retrain"]["forget"]["mean"]
    for group, floor in results["floor"].items():
        assert abs(klom["retrain"][group]["mean"] - floor["mean"]) <= 3 * floor["stderr"]
        for row in klom.values():
            assert row[group]["mean"] >= floor["mean"] - 3 * floor["stderr"]
