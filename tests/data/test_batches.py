import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import data
from jaxunlearn.data import Joined, batches, interleaved

KEY = jax.random.key(0)


def rows_of(source, first, length, key=KEY):
    plan = jax.jit(lambda source, key, steps: source.plan(key, steps))
    return np.asarray(plan(source, key, first + np.arange(length)))


@settings(max_examples=5)
@given(st.integers(1, 23), st.integers(1, 25), st.integers(0, 40), st.integers(1, 30))
def test_every_epoch_is_a_shuffle_wherever_a_block_begins(n, batch_size, first, length):
    indices = np.arange(n) * 3 + 1
    source = batches({"x": jnp.arange(100)}, indices, batch_size)
    size, per_epoch = source.batch_size, source.steps_per_epoch
    assert size == min(batch_size, n) and per_epoch == n // size
    whole = rows_of(source, 0, first + length)
    np.testing.assert_array_equal(rows_of(source, first, length), whole[first:])
    for epoch in range(len(whole) // per_epoch):
        seen = whole[epoch * per_epoch : (epoch + 1) * per_epoch].ravel()
        assert len(set(seen.tolist())) == per_epoch * size  # no repetition within an epoch
        assert set(seen.tolist()) <= set(indices.tolist())


def test_epochs_and_keys_differ():
    source = batches(jnp.arange(64), np.arange(64), 64)
    first, second = rows_of(source, 0, 2)
    assert sorted(first) == sorted(second) == list(range(64))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rows_of(source, 0, 1, jax.random.key(1))[0])


def test_gather_indexes_every_array():
    source = batches({"x": jnp.arange(10.0) * 2, "y": jnp.arange(10)}, np.arange(10), 4)
    batch = source.gather(jnp.array([3, 1]), KEY)
    np.testing.assert_array_equal(batch["x"], [6.0, 2.0])
    np.testing.assert_array_equal(batch["y"], [3, 1])


def test_joined_sources_draw_independently():
    one = batches(jnp.arange(32), np.arange(32), 32)
    both = Joined({"a": one, "b": one})
    rows = both.plan(KEY, jnp.arange(3))
    assert not np.array_equal(rows["a"], rows["b"])
    alone = Joined({"a": one}).plan(KEY, jnp.arange(3))
    np.testing.assert_array_equal(rows["a"], alone["a"])
    assert set(both.gather(jax.tree.map(lambda r: r[0], rows), KEY)) == {"a", "b"}


@settings(max_examples=4)
@given(st.lists(st.booleans(), min_size=2, max_size=24), st.integers(0, 20))
def test_interleaved_sources_move_only_when_they_are_used(flags, first):
    if all(flags) or not any(flags):
        flags[0] = not flags[0]
    a, b = batches(jnp.arange(9), np.arange(9), 3), batches(jnp.arange(8), np.arange(8), 2)
    source = interleaved(a, b, np.array(flags))
    first = min(first, len(flags) - 1)
    steps = jnp.arange(first, len(flags))
    rows = source.plan(KEY, steps)
    own = {
        name: rows_of(part, 0, len(flags), _key(name))
        for name, part in (("first", a), ("second", b))
    }
    counts = {"first": 0, "second": 0}
    for t, flag in enumerate(flags):
        name = "first" if flag else "second"
        if t >= first:
            np.testing.assert_array_equal(rows[name][t - first], own[name][counts[name]])
        counts[name] += 1


def _key(name):
    from jaxunlearn.core.keys import fold

    return fold(KEY, name)


def test_bad_sources():
    with pytest.raises(ValueError, match="at least one step of each kind"):
        one = batches(jnp.arange(4), np.arange(4), 2)
        interleaved(one, one, np.ones(3, bool))


@pytest.mark.parametrize(
    ("arrays", "indices", "keyed", "message"),
    [
        (np.arange(4), np.arange(0), {}, "indices is empty"),
        (np.arange(4), np.arange(4), dict(batch_size=0), "batch_size is 0"),
        (np.arange(4), np.arange(4), dict(batch_size=2.0), "batch_size is 2.0; a whole number"),
        (np.arange(4), np.array([0, 4]), {}, "row index 4 is out of range; allowed are 0 to 3"),
        (np.arange(4), jnp.array([-1, 3]), {}, "row index -1 is out of range"),
        (np.arange(4), np.array([0, -2]), dict(least=1), "allowed are -1 to 3"),
        (np.arange(4), np.array([True, False, True, True]), {}, "is a mask"),
        (np.arange(4), np.array([0.0, 1.0]), {}, "float64"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, np.arange(3), {}, "arrays have lengths"),
        ({}, np.arange(3), {}, "arrays have lengths"),
    ],
)
def test_bad_batches(arrays, indices, keyed, message):
    with pytest.raises(ValueError, match=message):
        batches(arrays, indices, **{"batch_size": 2} | keyed)


def test_digits_split_is_always_the_same():
    one, two = data.load("digits", 1200), data.load("digits", 1000)
    assert one.x_train.shape == (1200, 8, 8, 1) and one.x_val.shape == (597, 8, 8, 1)
    assert one.x_train.dtype == np.float32 and one.y_train.dtype == np.int32
    assert 0 <= one.x_train.min() and one.x_train.max() == 1
    assert set(one.y_train) == set(range(10)) == set(one.y_val)
    np.testing.assert_array_equal(one.x_train[:1000], two.x_train)
    # Train and validation share no image.
    flat = {x.tobytes() for x in one.x_train}
    assert sum(x.tobytes() in flat for x in one.x_val) <= 2  # the set itself holds duplicates


@pytest.mark.parametrize(
    ("name", "n_train", "message"),
    [("cats", 10, "'cats'; known data sets: digits"), ("digits", 1797, "allows 1 to 1796"),
     ("digits", 0, "n_train is 0")],
)  # fmt: skip
def test_bad_data(name, n_train, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, n_train)


@given(st.integers(1, 200), st.integers(1, 60))
def test_even_batches_leave_out_as_little_as_they_can(n, batch_size):
    source = batches(jnp.arange(n), np.arange(n), batch_size, even=True)
    covered = source.steps_per_epoch * source.batch_size
    assert source.batch_size <= batch_size
    assert source.steps_per_epoch >= -(-n // min(batch_size, n))
    assert n - covered < source.steps_per_epoch
