import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.core import ensemble, keys, loop, mesh, optimizers, step, tree
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError


def training(model, n_steps, shape):
    optimizer = optimizers.sgd(0.05, 0.9, 5e-4)
    take = step.gradient_step(step.supervised(model), optimizer)

    def data(key, t):
        x = jax.random.normal(keys.fold(key, t), (16, *shape))
        return {"x": x, "y": (x.reshape(16, -1)[:, 0] > 0).astype(int)}

    def one(shared, key):
        params, stats = model.init(keys.fold(key, "init"))
        state = step.init_state(params, optimizer, stats)
        state, metrics = loop.scan(take, state, None, data, key, n_steps)
        logits, _ = model.apply(state.params, state.stats, shared["x"])
        out = {"params": state.params, "stats": state.stats}
        return out | {"logits": logits, "losses": metrics["loss"]}

    return one, {"x": jax.random.normal(jax.random.key(9), (5, *shape))}


KEYS = jax.vmap(lambda i: keys.fold(jax.random.key(0), i))(jnp.arange(7))


MLP = nn.mlp(4, (8,), 3), (4,)
CNN_BN = nn.cnn((4, 4, 1), (2,), 3, batch_norm=True), (4, 4, 1)


@pytest.mark.parametrize(
    ("model", "shape", "mode"),
    [
        pytest.param(*MLP, "vmap", id="mlp-vmap"),
        pytest.param(*CNN_BN, "map", id="cnn_bn-map"),
        pytest.param(*MLP, "map", id="mlp-map", marks=pytest.mark.slow),
        pytest.param(*CNN_BN, "vmap", id="cnn_bn-vmap", marks=pytest.mark.slow),
    ],
)
def test_a_lane_equals_models_trained_alone(model, shape, mode):
    for n_steps, tolerance in ((1, 1e-5), (30, 1e-3)):
        one, shared = training(model, n_steps, shape)
        many = ensemble.run(one, shared, KEYS, width=3, mode=mode)
        assert many["logits"].shape == (7, 5, 3) and many["losses"].shape == (7, n_steps)
        for i in (0, 3, 6):
            alone = jax.jit(one)(shared, KEYS[i])
            what = "params" if n_steps == 1 else "logits"
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, i=i: x[i], many[what]), alone[what], atol=tolerance
            )


def test_another_width_agrees_within_the_promise():
    one, shared = training(nn.mlp(4, (8,), 3), 30, (4,))
    narrow = ensemble.run(one, shared, KEYS, width=2)
    wide = ensemble.run(one, shared, KEYS, width=7)
    np.testing.assert_allclose(narrow["logits"], wide["logits"], atol=1e-3)


def test_finished_lanes_are_not_computed_again_and_resume_to_the_same_bits(tmp_path):
    one, shared = training(nn.mlp(4, (8,), 3), 5, (4,))
    whole = ensemble.run(one, shared, KEYS, width=2)

    class Kill(Exception):
        pass

    def die(done):
        if done >= 4:
            raise Kill

    store = BlockStore(tmp_path / "lanes")
    with pytest.raises(Kill):
        ensemble.run(one, shared, KEYS, width=2, store=store, callback=die)
    assert [i in store for i in range(4)] == [True, True, False, False]
    before = store.file(0).read_bytes()
    seen = []
    resumed = ensemble.run(one, shared, KEYS, width=2, store=store, callback=seen.append)
    assert seen == [4, 4, 6, 7]  # found, compiled, two more lanes
    assert store.file(0).read_bytes() == before
    assert tree.digest(resumed) == tree.digest(whole)
    seen.clear()
    again = ensemble.run(one, shared, KEYS, width=2, store=store, callback=seen.append)
    assert seen == [7] and tree.digest(again) == tree.digest(whole)


def test_check_sees_each_lane_before_it_is_stored(tmp_path):
    def one(shared, x):
        return {"y": x / shared["d"]}

    def check(lane, first):
        if not np.isfinite(lane["y"]).all():
            raise FloatingPointError(f"lane of member {first}")

    members = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    store = BlockStore(tmp_path)
    with pytest.raises(FloatingPointError, match="member 2"):
        ensemble.run(one, {"d": 2.0}, members, width=2, check=check, store=store)
    assert 0 in store and 1 not in store


def test_a_damaged_lane_is_named(tmp_path):
    store = BlockStore(tmp_path)
    ensemble.run(lambda s, x: {"y": x + s}, 1.0, np.arange(4.0), width=2, store=store)
    raw = bytearray(store.file(1).read_bytes())
    raw[len(raw) // 2] ^= 1
    store.file(1).write_bytes(bytes(raw[:-40]))
    with pytest.raises(DamagedError, match="00001.npz is damaged"):
        ensemble.run(lambda s, x: {"y": x + s}, 1.0, np.arange(4.0), width=2, store=store)


def test_traced_and_compiled_once():
    @chex.assert_max_traces(n=1)
    def one(shared, x):
        return {"y": x + shared}

    for offset in (1.0, 2.0):
        out = ensemble.run(one, jnp.float32(offset), np.arange(7.0), width=2)
        np.testing.assert_array_equal(out["y"], np.arange(7.0) + offset)


def test_what_was_compiled_ahead_is_not_compiled_again():
    """By several threads at once, of which one compiles and the others wait."""
    traced = []

    def one(shared, x):
        traced.append(0)
        return {"y": x * shared}

    devices, members = mesh.make({"models": 1}), np.arange(5.0)
    how = {"width": 2, "mesh": devices}
    ahead = lambda: ensemble.compile_ahead(one, jnp.float32(3), members * 0, **how)  # noqa: E731
    threads = [threading.Thread(target=ahead) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(traced) == 1
    out = ensemble.run(one, jnp.float32(3), members, **how)
    assert len(traced) == 1
    np.testing.assert_array_equal(out["y"], 3 * members)


def test_the_padding_is_dropped():
    out = ensemble.run(lambda s, x: {"y": x * s}, 2.0, np.arange(5.0), width=4)
    np.testing.assert_array_equal(out["y"], 2 * np.arange(5.0))


@pytest.mark.parametrize(
    ("members", "keyed", "message"),
    [
        ({"a": np.zeros(2), "b": np.zeros(3)}, dict(width=1), "one leading axis"),
        ({"a": np.zeros(2), "b": 1.0}, dict(width=1), "one leading axis"),
        ({}, dict(width=1), "one leading axis"),
        (np.zeros((0, 2)), dict(width=1), "at least 1"),
        (np.zeros(3), dict(width=1.5), "width is 1.5; a whole number"),
        (np.zeros(3), dict(width=True), "width is True; a whole number"),
        (np.zeros(3), dict(width=1, mesh=mesh.make({"data": 1})), "mesh has axes data"),
        (np.zeros(3), dict(width=1, fn="train"), "fn is 'train'; a function"),
        (np.zeros(3), dict(width=0), "width is 0"),
        (np.zeros(3), dict(width=1, mode="scan"), "mode is 'scan'"),
        (np.zeros(3), dict(width=1, mesh=1), "mesh is 1"),
        (np.zeros(3), dict(width=1, store="lanes"), "store is 'lanes'; something with read"),
        (np.zeros(3), dict(width=1, sink=[]), r"sink is \[\]; something with write"),
        (np.zeros(3), dict(width=1, check=True), "check is True; a function"),
        (np.zeros(3), dict(width=1, callback="bar"), "callback is 'bar'; a function"),
    ],
)
def test_bad_arguments(members, keyed, message):
    with pytest.raises(ValueError, match=message):
        fn = keyed.pop("fn", lambda s, x: {"y": x})
        ensemble.run(fn, None, members, **keyed)
