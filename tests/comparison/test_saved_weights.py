"""Weights that a comparison leaves in files, and what can be done with them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn
from jaxunlearn import comparison, data, evaluate, nn
from jaxunlearn.comparison import Settings, weights
from jaxunlearn.core import disk
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import METHODS
from jaxunlearn.unlearn.scratch import Training

TINY = Settings(
    n_train=200, n_models=3, lane_width=2, forget_size=8, training=Training(epochs=2, batch_size=40)
)
SSD = {"ssd": METHODS["ssd"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, comparison.run(TINY, SSD, out=out)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "saved"
    return out, comparison.run(TINY, SSD, out=out, save=("ssd",))


def numbers(results):
    rows = json.loads(json.dumps(results["methods"]))
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows.values()]


def test_saving_changes_no_number(plain, saved):
    assert numbers(plain[1]) == numbers(saved[1])
    assert not (plain[0] / "weights").exists()
    names = {file.name for file in (saved[0] / "weights").iterdir()}
    assert names == {"original.safetensors", "oracle.safetensors", "ssd.safetensors"}


@pytest.mark.parametrize(("name", "kind"), [("original", "none"), ("oracle",) * 2, ("ssd",) * 2])
def test_what_is_loaded_answers_as_what_was_judged(name, kind, saved):
    out, _ = saved
    digits = data.load("digits", 200)
    x, y = np.concatenate([digits.x_train, digits.x_val])[:60], digits.y_train[:60]
    with np.load(out / "margins.npz") as margins:
        judged = margins[kind][:, :60]
    for member in range(3):
        model, params, stats = jaxunlearn.load(out / "weights" / f"{name}.safetensors", member)
        logits = jax.jit(model.apply)(params, stats, x)[0]
        np.testing.assert_allclose(evaluate.margins(logits, y), judged[member], atol=1e-4)
    model, params, stats = weights.load(out / "weights" / f"{name}.safetensors", None)
    assert params["dense"]["001"]["bias"].shape == (3, 10) and stats == {}


def test_a_run_that_goes_on_may_save_what_it_had_not(plain, tmp_path):
    shutil.copytree(plain[0], tmp_path / "run")
    results = comparison.run(TINY, SSD, out=tmp_path / "run", resume=True, save=("ssd", "retrain"))
    assert numbers(results) == numbers(plain[1])
    assert len(list((tmp_path / "run" / "weights").iterdir())) == 4
    jaxunlearn.load(tmp_path / "run" / "weights" / "retrain.safetensors", 2)


def test_statistics_and_integer_images_come_back(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    of = {"model": "cnn_bn", "shape": [8, 8, 3], "n_classes": 2, "multiply_adds": 1}
    of |= {"statistics": [[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]], "classes": ["a", "b"]}
    model = nn.by_name("cnn_bn", (8, 8, 3), 2, statistics=tuple(map(tuple, of["statistics"])))
    params, stats = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 2))
    file = tmp_path / "new" / "w.safetensors"
    weights.save(file, {"params": params, "stats": stats}, of)
    read = jaxunlearn.load(file, 1)
    assert jax.tree.leaves(read.stats)
    one = jax.tree.map(lambda leaf: leaf[1], (params, stats))
    apply = jax.jit(model.apply)
    assert jnp.array_equal(apply(*one, x)[0], apply(read.params, read.stats, x)[0])


def test_a_network_of_ones_own_is_given_again(tmp_path):
    mine = dataclasses.replace(TINY, model="mine", n_models=2)
    model = nn.mlp(64, (8,), 10)
    comparison.run(mine, {}, {"mine": model}, out=tmp_path / "run", save=("none",))
    file = tmp_path / "run" / "weights" / "none.safetensors"
    with pytest.raises(ValueError, match="holds weights of a network of your own"):
        weights.load(file)
    assert weights.load(file, model=model).model is model
    with pytest.raises(ValueError, match=r"none.safetensors: 'params/dense/000/bias' is \[2, 8\]"):
        weights.load(file, model=nn.mlp(64, (9,), 10))
    with pytest.raises(ValueError, match="has no place in this network|is missing"):
        weights.load(file, model=nn.mlp(64, (8, 8), 10))


def test_files_that_are_no_weights(saved, tmp_path):
    good = saved[0] / "weights" / "ssd.safetensors"
    with pytest.raises(ValueError, match="member is 3; .* holds 0 to 2"):
        weights.load(good, 3)
    with pytest.raises(ValueError, match="is no file"):
        weights.load(saved[0] / "weights")
    (tmp_path / "a").write_bytes(good.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut off"):
        weights.load(tmp_path / "a")
    with disk.replacing(tmp_path / "b") as file:
        weights.safetensors.write(file, {}, [])
    with pytest.raises(ValueError, match="was not written by `jaxunlearn unlearn --save`"):
        weights.load(tmp_path / "b")
    for says in ("[", "{}", "[1]", '{"model": "rnn"}', json.dumps({"model": "mlp", "shape": "x"})):
        with disk.replacing(tmp_path / "c") as file:
            weights.safetensors.write(file, {}, [], {"jaxunlearn.comparison": says})
        with pytest.raises(ValueError, match="describes no network that is known"):
            weights.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("methods", "save", "message"),
    [
        (SSD, ("scrub",), "save has 'scrub'; the methods of this run are none, retrain, ssd"),
        (
            {"dm_direct": METHODS["dm_direct"]},
            ("dm_direct",),
            "save has 'dm_direct', which changes outputs",
        ),
    ],
)
def test_what_cannot_be_saved_is_said_first(methods, save, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        comparison.prepare(TINY, Where(tmp_path / "run"), methods, save=save)
    assert not (tmp_path / "run").exists()
