"""Datamodel ensembles: outputs of many models on random subsets."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.attribution import datamodels, masks, members
from jaxunlearn.core.checks import NonFiniteError
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.data import batches
from jaxunlearn.unlearn import Problem, scratch

N, M, WIDTH = 12, 10, 4
MASKS = masks.exact(jax.random.key(0), M, N)
KEYS = jax.random.split(jax.random.key(1), M)
SHARED = {"x": np.linspace(0, 1, N).astype(np.float32), "scale": np.float32(3)}


def train(shared, rows, key):
    """Not a network: what counts is which rows it sees, and its key."""
    own = jnp.where(rows < 0, 0, shared["x"][rows])
    noise = jax.random.normal(key, (2,))
    return jnp.stack([own.sum() * shared["scale"] + noise, jnp.square(own).sum() + noise])


def wanted():
    found = []
    for mask, key in zip(MASKS, KEYS, strict=True):
        own = SHARED["x"][mask]
        noise = np.asarray(jax.random.normal(key, (2,)))
        found.append([own.sum() * 3 + noise, np.square(own).sum() + noise])
    return np.array(found)


def outputs_in(path, **change):
    settings = {"masks": MASKS, "keys": KEYS, "shape": (2, 2), "width": WIDTH} | change
    return members.Outputs(path, **settings)


def test_outputs_of_all_members(tmp_path):
    store, seen = outputs_in(tmp_path / "store"), []
    members.run(train, SHARED, store, callback=seen.append)
    np.testing.assert_allclose(store.outputs, wanted(), atol=1e-6)
    assert store.completed.all()
    assert seen == [0, 0, 4, 8, 10]
    again = outputs_in(tmp_path / "store")
    members.run(train, SHARED, again, callback=seen.append)
    assert seen[5:] == [10]  # nothing was left to do
    kept, values = again.finished()
    np.testing.assert_array_equal(kept, MASKS)
    np.testing.assert_array_equal(values, store.outputs)


def stop_after(count):
    def callback(done):
        if done >= count:
            raise KeyboardInterrupt

    return callback


def test_going_on_gives_the_same_bits(tmp_path):
    whole, cut = outputs_in(tmp_path / "whole"), outputs_in(tmp_path / "cut")
    members.run(train, SHARED, whole)
    with pytest.raises(KeyboardInterrupt):
        members.run(train, SHARED, cut, callback=stop_after(4))
    assert cut.completed.sum() == 4
    cut = outputs_in(tmp_path / "cut")
    members.run(train, SHARED, cut)
    np.testing.assert_array_equal(cut.outputs, whole.outputs)


def test_moments_are_those_of_the_outputs(tmp_path):
    store = outputs_in(tmp_path / "store")
    members.run(train, SHARED, store)
    moments = members.Moments(tmp_path / "moments", MASKS, KEYS, width=WIDTH)
    members.run(train, SHARED, moments)
    flat = np.asarray(store.outputs).reshape(M, -1)
    streamed = datamodels.fit_statistics(moments.statistics, l2=0.1)
    np.testing.assert_allclose(
        streamed.weights, datamodels.fit(MASKS, flat, l2=0.1).weights, atol=1e-5
    )


@pytest.mark.parametrize("every", [1, 2, 50])
def test_moments_go_on_to_the_same_bits(tmp_path, every):
    def moments(name):
        return members.Moments(tmp_path / name, MASKS, KEYS, width=WIDTH, every=every)

    whole = moments("whole")
    members.run(train, SHARED, whole)
    with pytest.raises(KeyboardInterrupt):
        members.run(train, SHARED, moments("cut"), callback=stop_after(8))
    cut = moments("cut")
    assert (0 in cut) == (every < 50)
    members.run(train, SHARED, cut)
    for name, value in vars(whole.statistics).items():
        np.testing.assert_array_equal(vars(cut.statistics)[name], value)
    again = moments("whole").statistics
    np.testing.assert_array_equal(again.cross, whole.statistics.cross)


def test_subsets_of_different_sizes(tmp_path):
    drawn = masks.bernoulli(jax.random.key(3), M, N)
    store = members.Outputs(tmp_path, drawn, KEYS, (2, 2), width=WIDTH)
    members.run(train, SHARED, store)
    sums = [SHARED["x"][mask].sum() for mask in drawn]
    noise = [jax.random.normal(key, (2,)) for key in KEYS]
    np.testing.assert_allclose(
        store.outputs[:, 0], 3 * np.array(sums)[:, None] + np.array(noise), atol=1e-5
    )


def test_batches_of_a_padded_table_hold_its_rows_only():
    rows = jnp.array([3, 5, 8, 9, 11, -1, -1])
    source = batches({"i": jnp.arange(12)}, rows, 2, least=4)
    assert source.steps_per_epoch == 2
    plan = np.asarray(source.plan(jax.random.key(0), jnp.arange(40)))
    assert set(plan.ravel()) == {3, 5, 8, 9, 11}
    for epoch in plan.reshape(20, 4):
        assert len(set(epoch)) == 4
    later = np.asarray(source.plan(jax.random.key(0), 11 + jnp.arange(9)))
    np.testing.assert_array_equal(later, plan[11:20])


def test_networks_are_trained_on_the_rows_of_a_padded_table_only():
    """What the others hold, here NaN, never reaches a member."""
    drawn = masks.bernoulli(jax.random.key(4), 5, 40)
    table, least = masks.tables(drawn), int(drawn.sum(1).min())
    assert (table < 0).any()
    model = nn.mlp(3, (4,), 2)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), jnp.asarray(rng.integers(0, 2, 40))
    settings = vars(scratch.Training(epochs=3, batch_size=5))
    for rows, mask in zip(table, drawn, strict=True):
        own = jnp.asarray(np.where(mask[:, None], x, np.nan))
        problem = Problem(own, y, jnp.arange(39), jnp.array([39]), 2)
        result = scratch.train(model, problem, jnp.asarray(rows), KEYS[0], least=least, **settings)
        assert len(result.losses) == 3 * (least // 5)
        assert np.isfinite(result.losses).all()


def test_a_killed_run_goes_on(tmp_path):
    """SIGKILL while lanes are written; what is flagged as completed is right."""
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_members import *
        import time
        store = outputs_in({str(tmp_path / "cut")!r})
        def callback(done):
            print(done, flush=True)
            time.sleep(0.2)
        members.run(train, SHARED, store, callback=callback)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if int(line) >= 4:
                process.send_signal(signal.SIGKILL)
                break
    store = outputs_in(tmp_path / "cut")
    assert 4 <= store.completed.sum() < 10
    members.run(train, SHARED, store)
    whole = outputs_in(tmp_path / "whole")
    members.run(train, SHARED, whole)
    np.testing.assert_array_equal(store.outputs, whole.outputs)


def test_a_member_that_is_not_finite_is_named(tmp_path):
    bad = jnp.asarray(masks.tables(MASKS)[6])

    def diverging(shared, rows, key):
        return train(shared, rows, key) + jnp.where(jnp.array_equal(rows, bad), jnp.nan, 0)

    store = outputs_in(tmp_path)
    with pytest.raises(NonFiniteError, match="member 6 is nan"):
        members.run(diverging, SHARED, store)
    np.testing.assert_array_equal(store.completed, np.arange(M) < 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ~MASKS}, "has masks_sha256 = "),
        ({"keys": KEYS[::-1]}, "has keys_sha256 = "),
        ({"width": 5}, "has width = 4, but now it is 5"),
        ({"shape": (2, 3)}, "has shape = "),
        ({"dtype": np.float16}, "has dtype = 'float32'"),
        ({"record": {"epochs": 3}}, "has record.epochs = None, but now it is 3"),
    ],
)
def test_a_store_of_another_run_is_refused(tmp_path, change, message):
    outputs_in(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        outputs_in(tmp_path, **change)
    assert sorted(tmp_path.iterdir()) == before


def test_foreign_and_damaged_folders(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of members"):
        outputs_in(tmp_path)
    with pytest.raises(ValueError, match="holds no run of members"):
        members.Moments(tmp_path / "notes.txt", MASKS, KEYS, width=WIDTH)
    outputs_in(tmp_path / "store")
    file = tmp_path / "store" / "outputs.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DamagedError, match="outputs.npy is damaged"):
        outputs_in(tmp_path / "store")
    settings = tmp_path / "store" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()))[:-5])
    with pytest.raises(DamagedError, match="settings.json is damaged"):
        outputs_in(tmp_path / "store")
    with pytest.raises(ValueError, match=r"keys are \[3\]; \[10\] is needed"):
        outputs_in(tmp_path / "new", keys=KEYS[:3])


def test_any_flipped_bit_of_what_is_completed_is_named(tmp_path):
    store = outputs_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        members.run(train, SHARED, store, callback=stop_after(4))
    header = store.outputs.offset
    completed = {"outputs.npy": header + 4 * 16, "checksums.npy": 128 + 4 * 32}
    for name in (*completed, "settings.json"):
        file = tmp_path / name
        whole = file.read_bytes()
        for at in range(completed.get(name, len(whole))):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(DamagedError, match=f"({name}|outputs.npy) is damaged"):
                outputs_in(tmp_path)
        file.write_bytes(whole)
    # A member that is not there must not seem to be.
    whole = (tmp_path / "checksums.npy").read_bytes()
    (tmp_path / "checksums.npy").write_bytes(whole[:-1] + b"x")
    with pytest.raises(DamagedError, match="outputs of member 9 have"):
        outputs_in(tmp_path)
    (tmp_path / "checksums.npy").write_bytes(whole)
    # The flags follow from the checksums.
    flags = (tmp_path / "completed.npy").read_bytes()
    (tmp_path / "completed.npy").write_bytes(flags[:-10] + bytes(range(10)))
    np.testing.assert_array_equal(outputs_in(tmp_path).completed, np.arange(M) < 4)
    assert (tmp_path / "completed.npy").read_bytes() == flags


def test_outputs_of_earlier_versions_have_no_checksums(tmp_path):
    store = outputs_in(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        members.run(train, SHARED, store, callback=stop_after(8))
    (tmp_path / "cut" / "checksums.npy").unlink()
    settings = json.loads((tmp_path / "cut" / "settings.json").read_text())
    del settings["configuration"], settings["sha256"]
    (tmp_path / "cut" / "settings.json").write_text(json.dumps(settings))
    store, whole = outputs_in(tmp_path / "cut"), outputs_in(tmp_path / "whole")
    assert store.completed.sum() == 8
    for sink in (store, whole):
        members.run(train, SHARED, sink)
    np.testing.assert_array_equal(store.outputs, whole.outputs)
    outputs_in(tmp_path / "cut")


def test_sinks_of_another_configuration_are_refused(tmp_path, monkeypatch):
    outputs_in(tmp_path / "outputs")
    members.Moments(tmp_path / "moments", MASKS, KEYS, width=WIDTH)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_option=1")
    with pytest.raises(ValueError, match="outputs' has configuration.LIBTPU_INIT_ARGS.xla_tpu"):
        outputs_in(tmp_path / "outputs")
    with pytest.raises(ValueError, match="moments' has configuration.LIBTPU_INIT_ARGS.xla_tpu"):
        members.Moments(tmp_path / "moments", MASKS, KEYS, width=WIDTH)


def test_all_room_is_taken_at_the_start_or_nothing_is_made(tmp_path):
    store = outputs_in(tmp_path / "store", shape=(1000,))
    assert (tmp_path / "store" / "outputs.npy").stat().st_blocks * 512 >= store.outputs.nbytes
    with pytest.raises(OSError, match="outputs.npy"):
        outputs_in(tmp_path / "much", shape=(1 << 44,))
    assert not list((tmp_path / "much").iterdir())


def test_sinks_are_never_written_through_links(tmp_path):
    store = outputs_in(tmp_path / "store")
    for name in ("outputs", "checksums", "completed"):
        os.link(tmp_path / "store" / f"{name}.npy", tmp_path / name)  # as backups have them
    before = [(tmp_path / name).read_bytes() for name in ("outputs", "checksums", "completed")]
    members.run(train, SHARED, store)
    after = [(tmp_path / name).read_bytes() for name in ("outputs", "checksums", "completed")]
    assert after == before and outputs_in(tmp_path / "store").completed.all()
    (tmp_path / "store" / "completed.npy").unlink()
    (tmp_path / "store" / "completed.npy").symlink_to(tmp_path / "completed")
    with pytest.raises(ValueError, match="completed.npy is a link"):
        outputs_in(tmp_path / "store")
