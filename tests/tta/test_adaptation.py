import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn, tta
from jaxunlearn.core import checkpoint, resume, tree
from jaxunlearn.tta import adaptation, kept_runs, lanes, streams
from jaxunlearn.tta.deployment import deploy


def batches(rows, size):
    """Tables of rows in their order."""
    stream = streams.Stream(rows, np.zeros(len(rows), int), (0,))
    return streams.batches(stream, size)


RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(22, 8, 8, 3)).astype("float32")
SOURCE = (RNG.uniform(size=(12, 8, 8, 3)).astype("float32"), np.arange(12) % 10)
KEY = jax.random.key(3)
MODEL = nn.wide_resnet(10, 1)


@functools.cache
def trained():
    params, stats = MODEL.init(jax.random.key(0))
    stats = jax.tree.map(lambda leaf: leaf + 0.1, stats)
    return params, stats


def run(name, images=IMAGES, key=KEY, **settings):
    method = tta.METHODS[name](**settings)
    return tta.run(method, MODEL, *trained(), images, batch_size=8, key=key, source=SOURCE)


def test_a_padded_last_batch_changes_nothing():
    padded = run("tent")
    whole = run("tent", IMAGES[:16])
    np.testing.assert_allclose(padded.logits[:16], whole.logits, atol=1e-6)
    last = MODEL.apply(whole.params, trained()[1], IMAGES[16:], statistics="batch")[0]
    np.testing.assert_allclose(padded.logits[16:], last, atol=1e-4)
    assert padded.logits.shape == (22, 10) and padded.predictions.shape == (22,)


def test_the_caller_keeps_its_arrays_and_gets_the_same_tree():
    params, stats = trained()
    before = tree.digest((params, stats))
    out = run("tent")
    assert tree.digest((params, stats)) == before
    assert jax.tree.structure(out.params) == jax.tree.structure(params)


def test_a_scan_is_a_loop_over_batches():
    method = tta.METHODS["tent"]()
    deployment = deploy(MODEL, *trained(), (8, 8, 3), 8)
    state, shared = adaptation.begin(method, deployment, KEY)
    step = jax.jit(method.step(deployment.network))
    logits = []
    for i in (0, 8):
        state, metrics = step(state, shared, {"x": jnp.array(IMAGES[i : i + 8])}, KEY)
        logits.append(metrics["logits"])
    whole = run("tent", IMAGES[:16])
    np.testing.assert_allclose(np.concatenate(logits), whole.logits, atol=1e-5)
    mine = adaptation.adapted(state, shared)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine, whole.params)


def runs_of(method, tmp, keys, tables):
    deployment = deploy(MODEL, *trained(), (8, 8, 3), 8, SOURCE)
    stores = checkpoint.BlockStore(tmp / "blocks"), resume.ResumePoint(tmp / "point")
    return kept_runs.adapted(
        method,
        deployment,
        jnp.array(IMAGES),
        tables,
        keys,
        blocks=stores[0],
        point=stores[1],
        report=lambda done: None,
    )


def orders(n):
    tables = [batches(np.random.default_rng(i).permutation(22), 8) for i in range(n)]
    stacked = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    return stacked


def test_runs_side_by_side_are_separate_runs(tmp_path):
    keys = [jax.random.key(i) for i in (5, 6)]
    tables = orders(2)
    together = runs_of(tta.METHODS["tent"](), tmp_path, keys, tables)
    for i, key in enumerate(keys):
        rows = tables["rows"][i][tables["valid"][i]]
        alone = run("tent", IMAGES[rows], key)
        np.testing.assert_array_equal(together["predictions"][i], alone.predictions)
    assert together["drift"].shape == (2, 1) and (together["drift"] > 0).all()
    assert together["finite"].all()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Blocks of one batch; the state is kept a block later than what was seen."""
    monkeypatch.setattr(kept_runs, "block_size", lambda n: 1)
    method, keys, tables = tta.METHODS["bn_ema"](), [KEY, jax.random.key(9)], orders(2)
    whole = runs_of(method, tmp_path / "whole", keys, tables)

    class Stopped(Exception):
        pass

    for moment in range(1, 7):
        count, place = 0, tmp_path / str(moment)

        def stop(write, place=place, moment=moment):
            def written(self, *args, **kwargs):
                nonlocal count
                count += 1
                if count == moment and str(place) in str(getattr(self, "path", place)):
                    raise Stopped
                return write(self, *args, **kwargs)

            return written

        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(checkpoint.BlockStore, "write", stop(checkpoint.BlockStore.write))
            runs_of(method, place, keys, tables)
        again = runs_of(method, place, keys, tables)
        assert tree.digest(again) == tree.digest(whole)


def test_resets_go_back_to_the_state_before_the_first_batch():
    method = tta.METHODS["tent"](learning_rate=0.1)
    deployment = deploy(MODEL, *trained(), (8, 8, 3), 8)
    twice = batches(np.r_[np.arange(16), np.arange(16)], 8)
    reset = twice | {"reset": np.arange(4) == 2}
    logits = {}
    for name, tables in {"on": twice, "anew": reset}.items():
        state, shared = adaptation.begin(method, deployment, KEY)
        data = adaptation.data(method, deployment, IMAGES, tables)
        how = {"method": method, "network": deployment.network, "n_steps": 4}
        _, logits[name] = adaptation.advance(state, shared, data, KEY, 0, **how)
    np.testing.assert_array_equal(logits["anew"][2:], logits["anew"][:2])
    assert np.abs(logits["on"][2:] - logits["on"][:2]).max() > 1e-3


def test_one_program_serves_all_blocks_and_runs():
    method = tta.METHODS["bn"]()
    deployment = deploy(MODEL, *trained(), (8, 8, 3), 8)
    tables = batches(np.arange(16), 8)
    data = adaptation.data(method, deployment, IMAGES, tables)
    how = {"method": method, "network": deployment.network, "n_steps": 1}
    before = adaptation.advance._cache_size()
    for first in (0, 1):
        for key in (KEY, jax.random.key(8)):
            state, shared = adaptation.begin(tta.METHODS["bn"](), deployment, key)
            adaptation.advance(state, shared, data, key, jnp.int32(first), **how)
    assert adaptation.advance._cache_size() == before + 1


def test_half_precision_computes_the_network_and_keeps_float32():
    half = tta.run(
        tta.METHODS["tent"](), MODEL, *trained(), IMAGES, batch_size=8, key=KEY, compute="bfloat16"
    )
    assert half.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    np.testing.assert_allclose(half.logits, run("tent").logits, atol=0.1)


def wrong(**change):
    arguments = {"images": IMAGES, "batch_size": 8, "key": KEY, "source": None} | change
    images = arguments.pop("images")
    params, stats = arguments.pop("network", trained())
    return tta.run(tta.METHODS["tent"](), MODEL, params, stats, images, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 2 * IMAGES}, r"images lie in \[.*; \[0, 1\] is needed"),
        ({"images": IMAGES - 0.5}, "images lie in"),
        ({"images": np.full_like(IMAGES, np.nan)}, "images lie in"),
        ({"images": IMAGES[0]}, r"images has shape \[8, 8, 3\]"),
        ({"images": IMAGES[..., :1]}, "the network does not fit images of 8 x 8 x 1"),
        ({"batch_size": 1}, "batch_size is 1, of which no statistics can be taken; .*window"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"source": (SOURCE[0], SOURCE[1] + 1)}, "labels from 1 to 10; the network has 10 classes"),
        ({"source": (SOURCE[0], SOURCE[1][:3])}, r"labels int64\[3\]; integers \[12\]"),
        ({"source": (SOURCE[0][:, :4], SOURCE[1])}, r"source has images of \[4, 8, 3\]"),
        ({"network": ({}, {})}, "is missing"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(change, message):
    with pytest.raises(ValueError, match=message):
        wrong(**change)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="optimizer is 'rmsprop'; adam, sgd are allowed"):
        tta.METHODS["tent"](optimizer="rmsprop")
    with pytest.raises(ValueError, match="alpha is 2"):
        tta.METHODS["bn_alpha"](alpha=2)
    with pytest.raises(ValueError, match="no normalisation layer"):
        model = nn.mlp(192, (8,), 10)
        tta.run(
            tta.METHODS["tent"](),
            model,
            *model.init(KEY),
            IMAGES,
            batch_size=8,
            key=KEY,
        )


def test_lanes_are_seen_with_entropies_of_their_logits():
    logits = jnp.array([[[0.0, 0.0, 0.0], [50.0, 0.0, -50.0]]])
    seen = lanes._seen(logits)
    np.testing.assert_allclose(seen["entropy"], [[np.log(3), 0]], atol=1e-6)
    assert seen["finite"].tolist() == [True]
