import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.core import EarlyStop, checkpoint, loop, optimizers, step, tree
from jaxunlearn.core.keys import fold
from jaxunlearn.core.sources import HostBlocks
from jaxunlearn.data import batches


@pytest.fixture(scope="module")
def training(small):
    model, params, stats, batch_of = small
    optimizer = optax.adam(1e-2)
    take = step.gradient_step(step.supervised(model), optimizer)
    return take, step.init_state(params, optimizer, stats), batch_of


KEY = jax.random.key(7)


def test_blocks_one_by_one_or_all_at_once_give_the_same_bits(training):
    take, state, data = training
    whole = loop.run(take, state, None, data, KEY, 50)
    cut = loop.run(take, state, None, data, KEY, 50, block=12)
    scanned, metrics = jax.jit(lambda s: loop.scan(take, s, None, data, KEY, 50))(state)
    assert tree.digest(whole.state) == tree.digest(cut.state) == tree.digest(scanned)
    assert tree.digest(whole.metrics) == tree.digest(cut.metrics) == tree.digest(metrics)
    assert whole.metrics["loss"].shape == (50,)
    assert whole.metrics["loss"][-10:].mean() < 0.8 * whole.metrics["loss"][:10].mean()


def test_the_loop_equals_steps_taken_by_hand(training):
    take, state, data = training
    by_hand = state

    @jax.jit
    def step_by_hand(state, t):
        batch = data(fold(KEY, "data"), t)
        return take(state, None, batch, fold(KEY, "step", t))[0]

    for t in range(5):
        by_hand = step_by_hand(by_hand, jnp.int32(t))
    looped = loop.run(take, state, None, data, KEY, 5).state
    chex.assert_trees_all_close(by_hand, looped, rtol=1e-5, atol=1e-6)


def test_interrupted_and_resumed_from_disk_gives_the_same_bits(training, tmp_path):
    take, state, data = training
    whole = loop.run(take, state, None, data, KEY, 40, block=10)

    class Kill(Exception):
        pass

    def save_and_die(progress, metrics, checks):
        checkpoint.save(tmp_path / "progress", progress)
        if int(progress.done) == 20:
            raise Kill

    with pytest.raises(Kill):
        loop.run(take, state, None, data, KEY, 40, block=10, callback=save_and_die)
    progress = checkpoint.restore(tmp_path / "progress", loop.start(state))
    assert int(progress.done) == 20
    resumed = loop.run(take, state, None, data, KEY, 40, block=10, resume=progress)
    assert tree.digest(resumed.state) == tree.digest(whole.state)
    np.testing.assert_array_equal(resumed.metrics["loss"], whole.metrics["loss"][20:])


def test_traced_once_compiled_once_types_unchanged(training):
    take, state, data = training

    @chex.assert_max_traces(n=1)
    def counted(state, shared, batch, key):
        return take(state, shared, batch, key)

    first = loop.run(counted, state, None, data, KEY, 50, block=12)
    size = loop.advance._cache_size()
    second = loop.run(counted, first.state, None, data, jax.random.key(8), 30, block=12)
    assert loop.advance._cache_size() == size, "the second call compiled again"
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(second.state), strict=True):
        assert jax.typeof(before) == jax.typeof(after)


def test_the_callers_state_survives_and_blocks_donate(training):
    take, state, data = training
    digest = tree.digest(state)
    seen = []
    loop.run(take, state, None, data, KEY, 30, block=10, callback=lambda p, *_: seen.append(p))
    assert tree.digest(state) == digest
    # The buffers of the first block went into the second, not beside it.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen[0].state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(seen[-1].state.params))


def test_shared_is_not_donated(training):
    take, state, data = training

    def reads_shared(s, shared, batch, key):
        s, metrics = take(s, None, batch, key)
        return s, metrics | {"shared": shared.sum()}

    shared = jnp.ones(3)
    result = loop.run(reads_shared, state, shared, data, KEY, 20, block=10)
    assert not shared.is_deleted()
    np.testing.assert_array_equal(result.metrics["shared"], 3.0)


def test_blocks_from_the_host(training):
    take, state, data = training

    rows = jax.vmap(lambda t: data(fold(KEY, "data"), t))(jnp.arange(30))
    rows = jax.tree.map(np.asarray, rows)

    def open_at(first):
        for at in range(first, 30, 10):
            yield jax.tree.map(lambda x, at=at: x[at : at + 10], rows)

    host = HostBlocks(open_at)
    from_host = loop.run(take, state, None, host, KEY, 30)
    on_device = loop.run(take, state, None, data, KEY, 30, block=10)
    assert from_host.metrics["loss"].shape == (30,)
    chex.assert_trees_all_close(from_host.state, on_device.state, rtol=1e-5, atol=1e-6)
    # Again, and resumed in the middle: the same batches.
    saved = []
    copy = lambda p, *_: saved.append(jax.tree.map(jnp.copy, p))  # noqa: E731
    again = loop.run(take, state, None, host, KEY, 30, callback=copy)
    resumed = loop.run(take, state, None, host, KEY, 30, resume=saved[0])
    digests = {tree.digest(r.state) for r in (from_host, again, resumed)}
    assert len(digests) == 1
    cut = loop.run(take, state, None, host, KEY, 25)  # the limit may lie inside a block
    assert cut.metrics["loss"].shape == (25,)
    with pytest.raises(ValueError, match="blocks ended after step 30 of 40"):
        loop.run(take, state, None, host, KEY, 40)
    with pytest.raises(ValueError, match="no multiple of every=4"):
        loop.run(take, state, None, host, KEY, 20, every=4, evaluate=lambda s, shared: {})
    with pytest.raises(ValueError, match="same number of steps"):
        bad = HostBlocks(lambda first: iter([{"x": np.zeros((3, 2)), "y": np.zeros((2, 2))}]))
        loop.run(take, state, None, bad, KEY, 10)
    with pytest.raises(ValueError, match="data is a list_iterator"):
        loop.run(take, state, None, iter([rows]), KEY, 30)


def test_runs_inside_traced_functions(training):
    take, state, data = training
    many = jax.random.split(KEY, 3)
    states = jax.jit(jax.vmap(lambda key: loop.run(take, state, None, data, key, 10).state))(many)
    one = loop.run(take, state, None, data, many[1], 10).state
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], states), one, rtol=1e-5, atol=1e-6)


def mean_of(state, shared):
    del shared
    return {"mean": jnp.mean(state.params["dense"]["000"]["kernel"]), "at": state.step}


@pytest.mark.parametrize("check_start", [False, True])
def test_a_check_before_the_first_step_and_a_short_last_stretch(training, check_start):
    """They change no step; each check is of the state that it says."""
    take, state, data = training
    plain = loop.run(take, state, None, data, KEY, 22)
    keyed = dict(evaluate=mean_of, every=5, check_start=check_start)
    whole = loop.run(take, state, None, data, KEY, 22, **keyed)
    assert tree.digest(whole.state) == tree.digest(plain.state)
    assert tree.digest(whole.metrics) == tree.digest(plain.metrics)
    at = [0] * check_start + [5, 10, 15, 20, 22]
    np.testing.assert_array_equal(whole.checks["at"], at)
    if check_start:
        assert whole.checks["mean"][0] == mean_of(state, None)["mean"]
    np.testing.assert_array_equal(whole.checks["mean"][-1], mean_of(plain.state, None)["mean"])
    saved = []
    copy = lambda p, *_: saved.append(jax.tree.map(jnp.copy, p))  # noqa: E731
    cut = loop.run(take, state, None, data, KEY, 22, **keyed, block=10, callback=copy)
    traced = jax.jit(lambda s: loop.run(take, s, None, data, KEY, 22, **keyed))(state)
    for other in (cut, traced):
        assert tree.digest(other) == tree.digest(whole)
    for progress in saved:
        resumed = loop.run(take, state, None, data, KEY, 22, **keyed, block=10, resume=progress)
        assert tree.digest(resumed.state) == tree.digest(whole.state)
        done = int(progress.done)
        np.testing.assert_array_equal(
            np.atleast_1d(resumed.checks.get("at", [])), [n for n in at if n > done]
        )


# --- early stopping -------------------------------------------------------------------------


def series(state, shared):
    """Metrics from a table, by number of checks; `step` also lands in the weights."""
    return {name: values[state.step // 2 - 1] for name, values in shared.items()}


def counting(state, shared, batch, key):
    import dataclasses

    del shared, batch, key
    params = jax.tree.map(lambda p: p + 1.0, state.params)
    state = dataclasses.replace(state, params=params, step=state.step + 1)
    return state, {"number": state.step}


def run_series(stops, n_checks=None, **metrics):
    metrics = {name: jnp.array(values) for name, values in metrics.items()}
    n_checks = n_checks or len(next(iter(metrics.values())))
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state = step.init_state(params, optimizers.sgd(0.1))
    return loop.run(
        counting, state, metrics, lambda key, t: t, KEY, 2 * n_checks,
        evaluate=series, every=2, stops=stops,
    )  # fmt: skip


PAPER = [.9876, .9871, .9876, .9876, .9880, .9874, .9866, .9873, .9874, .9882, .9876]  # fmt: skip


def test_early_stop_replays_a_published_series():
    # lightweight CNN, stage B2, patience 10: stops after epoch 11 and returns epoch 1.
    stop = EarlyStop("v", patience=10, min_delta=0.001, mode="max")
    result = run_series((stop,), v=[*PAPER, 0.99, 0.99, 0.99])
    assert result.checks["v"].shape == (11,)
    assert int(result.best_checks[0]) == 0
    np.testing.assert_array_equal(result.state.params["a"], [2.0, 2.0])


def test_any_stop_ends_the_run_and_each_restores_its_own_weights():
    stops = (
        EarlyStop("first", patience=3, restore="a"),
        EarlyStop("second", patience=3, restore="b", mode="max"),
    )
    result = run_series(
        stops, first=[5.0, 4.0, 3.0, 3.5, 3.5, 3.5, 1.0], second=[0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.9]
    )
    assert result.checks["first"].shape == (6,)
    assert [int(c) for c in result.best_checks] == [2, 4]
    np.testing.assert_array_equal(result.state.params["a"], [6.0, 6.0])
    np.testing.assert_array_equal(result.state.params["b"], [10.0, 10.0])
    assert result.metrics["number"].shape == (12,)


def test_start_ignores_first_checks_and_the_end_restores_too():
    result = run_series((EarlyStop("v", patience=2, start=2),), v=[0.0, 0.1, 5.0, 4.0, 4.5])
    assert result.checks["v"].shape == (5,)
    assert int(result.best_checks[0]) == 3
    np.testing.assert_array_equal(result.state.params["a"], [8.0, 8.0])


def test_the_first_check_counts_even_if_it_is_nan():
    """As in Keras, see tests/parity: nothing improves on it, and its weights are restored."""
    result = run_series((EarlyStop("v", patience=2),), v=[np.nan, np.nan, 1.0, 0.5])
    assert result.checks["v"].shape == (3,) and int(result.best_checks[0]) == 0
    np.testing.assert_array_equal(result.state.params["a"], [2.0, 2.0])
    late = run_series((EarlyStop("v", patience=2, start=9),), v=[1.0, 2.0, 3.0])  # none counts
    assert int(late.best_checks[0]) == -1
    np.testing.assert_array_equal(late.state.params["a"], [6.0, 6.0])
    kept = run_series((EarlyStop("v", patience=1, restore=None),), v=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(kept.state.params["a"], [4.0, 4.0])


def test_the_check_before_the_first_step_counts():
    """It is check 0: if nothing is better, what is restored is the start."""
    params = {"a": jnp.full(2, 7.0), "b": jnp.zeros(2)}
    state = step.init_state(params, optimizers.sgd(0.1))
    shared = {"v": jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])}
    table = lambda state, shared: {"v": shared["v"][(state.step + 1) // 2]}  # noqa: E731
    keyed = dict(evaluate=table, every=2, check_start=True)
    arguments = (counting, state, shared, lambda key, t: t, KEY, 7)
    result = loop.run(*arguments, stops=(EarlyStop("v", patience=2),), **keyed)
    assert result.checks["v"].tolist() == [1.0, 2.0, 3.0] and int(result.best_checks[0]) == 0
    np.testing.assert_array_equal(result.state.params["a"], 7.0)
    late = loop.run(*arguments, stops=(EarlyStop("v", patience=9, mode="max"),), **keyed)
    assert int(late.best_checks[0]) == 4 and late.checks["v"].shape == (5,)
    np.testing.assert_array_equal(late.state.params["a"], 14.0)  # of the short stretch
    nothing = {"v": jnp.full(5, jnp.nan)}
    stopped = loop.run(
        counting, state, nothing, *arguments[3:], stops=(EarlyStop("v", patience=1),), **keyed
    )
    assert stopped.checks["v"].shape == (2,) and int(stopped.best_checks[0]) == 0
    np.testing.assert_array_equal(stopped.state.params["a"], 7.0)


def test_early_stop_under_vmap_stops_each_model_by_itself():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state = step.init_state(params, optimizers.sgd(0.1))
    table = jnp.array([[3.0, 2.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])

    def one(values):
        return loop.run(
            counting, state, {"v": values}, lambda key, t: t, KEY, 8,
            evaluate=series, every=2, stops=(EarlyStop("v", patience=2),),
        )  # fmt: skip

    result = jax.jit(jax.vmap(one))(table)
    np.testing.assert_array_equal(result.best_checks[0], [3, 0])
    np.testing.assert_array_equal(result.state.params["a"][:, 0], [8.0, 2.0])
    np.testing.assert_array_equal(np.isnan(result.checks["v"][1]), [False, False, False, True])


def test_early_stop_survives_blocks_and_resume():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state = step.init_state(params, optimizers.sgd(0.1))
    shared = {"v": jnp.array([3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1])}
    arguments = (counting, state, shared, lambda key, t: t, KEY, 14)
    keyed = dict(evaluate=series, every=2, stops=(EarlyStop("v", patience=4),))
    whole = loop.run(*arguments, **keyed)
    saved = []
    copy = lambda p, *_: saved.append(jax.tree.map(jnp.copy, p))  # noqa: E731
    cut = loop.run(*arguments, **keyed, block=4, callback=copy)
    resumed = loop.run(*arguments, **keyed, block=4, resume=saved[1])
    assert whole.checks["v"].shape == (6,)
    digests = {tree.digest(r.state) for r in (whole, cut, resumed)}
    assert len(digests) == 1
    stopped = loop.run(*arguments, **keyed, block=4, resume=saved[-1])
    assert tree.digest(stopped.state) in digests and stopped.metrics == {}


@pytest.mark.parametrize(
    ("keyed", "message"),
    [
        (dict(n_steps=10, every=3, block=4, evaluate=series), "multiple of every=3"),
        (dict(n_steps=10, every=0), "every is 0"),
        (dict(n_steps=4, check_start=True), "needs evaluate"),
        (dict(n_steps=0), "n_steps is 0"),
        (dict(n_steps=4, stops=(EarlyStop("v", 1),)), "needs evaluate"),
        (
            dict(n_steps=4, every=2, evaluate=series, stops=(EarlyStop("w", 1),)),
            "'w' is not among those.*: v",
        ),
        (
            dict(
                n_steps=4,
                every=2,
                evaluate=series,
                stops=(EarlyStop("v", 1), EarlyStop("v", 1, restore="a")),
            ),
            "more than one EarlyStop restores params/a",
        ),
        (
            dict(n_steps=4, every=2, evaluate=series, stops=(EarlyStop("v", 1, restore="c"),)),
            "'c' matches no parameter",
        ),
    ],
)
def test_bad_arguments(keyed, message):
    state = step.init_state({"a": jnp.zeros(2)}, optimizers.sgd(0.1))
    n_steps = keyed.pop("n_steps")
    with pytest.raises(ValueError, match=message):
        loop.run(counting, state, {"v": jnp.zeros(9)}, lambda key, t: t, KEY, n_steps, **keyed)


@pytest.mark.parametrize(
    "keyed",
    [
        dict(patience=0),
        dict(min_delta=-1.0),
        dict(mode="up"),
        dict(metric=3),
        dict(metric=None),
        dict(restore=3),
        dict(restore="("),
        dict(restore=(3,)),
    ],
)
def test_bad_early_stops(keyed):
    with pytest.raises(ValueError, match=f"EarlyStop: {next(iter(keyed))} "):
        EarlyStop(**(dict(metric="v", patience=1) | keyed))


def test_data_of_the_wrong_kind(training):
    take, state, _ = training
    with pytest.raises(ValueError, match="data is a dict"):
        loop.run(take, state, None, {"x": 1}, KEY, 2)


def test_batches_feed_the_loop(training, small):
    take, state, _ = training
    x = jax.random.normal(KEY, (40, 4))
    source = batches({"x": x, "y": jnp.arange(40) % 3}, jnp.arange(30), 8)
    one = loop.run(take, state, None, source, KEY, 21)
    cut = loop.run(take, state, None, source, KEY, 21, block=5)
    assert tree.digest(one.state) == tree.digest(cut.state)
