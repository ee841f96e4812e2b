"""How long an ensemble lasts: closed forms, exact sums, and streams that agree with them."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.core import mesh
from jaxunlearn.exact import deletion, orders

PRIOR = np.array([0.4, 0.3, 0.2, 0.1])


def of_tops(tops, n_shards=2, n_slices=4):
    table = np.stack([np.roll(np.arange(n_slices), -top) for top in tops])
    return np.stack([table] * n_shards)


@pytest.mark.parametrize(
    ("sizes", "mean", "std"),
    [
        ((5, 4, 1), 45.667, 23.2),
        ((5, 4, 2), 58.579, 23.7),
        ((5, 4, 4), 71.955, 23.8),
        ((5, 4, 8), 71.955, 23.8),
        ((2, 4, 4), 21.743, None),
        ((10, 4, 4), 171.142, None),
        ((5, 8, 4), 143.91, None),
        ((3, 3, 3), 25.461, None),
        ((1, 4, 1), 4.0, None),
    ],
)
def test_expected_requests(sizes, mean, std):
    assert deletion.expected_requests(*sizes) == pytest.approx(mean, abs=5e-4 * mean)
    if std is not None:
        assert deletion.uniform(*sizes).std == pytest.approx(std, abs=0.05)
    m, n_slices, budget = sizes
    table = np.stack([orders.cyclic(n_slices, budget)] * m)
    assert deletion.lifetime(table) == deletion.uniform(*sizes)
    exact = deletion.lifetime(table, np.full((m, n_slices), 1 / (m * n_slices)))
    assert exact.mean == pytest.approx(deletion.expected_requests(*sizes), rel=1e-9)
    assert exact.std == pytest.approx(deletion.uniform(*sizes).std, rel=1e-9)


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_streams_have_the_mean_and_deviation_of_the_closed_form(budget):
    table = np.stack([orders.cyclic(4, budget)] * 5)
    counts = deletion.simulate(table, None, 20_000, jax.random.key(budget))
    want = deletion.uniform(5, 4, budget)
    assert counts.shape == (20_000,) and counts.min() >= 5
    assert counts.mean() == pytest.approx(want.mean, rel=0.01)
    assert counts.std() == pytest.approx(want.std, rel=0.03)


@pytest.mark.parametrize(
    ("tops", "mean"), [([0], 7.5), ([3], 30), ([3, 2], 33), ([0, 1], 12.28), ([0, 1, 2, 3], 33.91)]
)
def test_a_prior_changes_how_long_it_lasts(tops, mean):
    table, prior = of_tops(tops), np.stack([PRIOR, PRIOR]) / 2
    exact = deletion.lifetime(table, prior)
    assert exact.mean == pytest.approx(mean, abs=5e-3)
    # 1 % are two standard errors of 20,000 streams with [3] alone.
    counts = deletion.simulate(table, prior, 200_000, jax.random.key(0))
    assert counts.mean() == pytest.approx(exact.mean, rel=0.01)
    assert counts.std() == pytest.approx(exact.std, rel=0.03)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 1000))
def test_streams_are_the_plain_loop(n_shards, n_slices, seed):
    """Of depths request by request: the first request after which no shard has a stage left."""
    table = np.stack([orders.cyclic(n_slices, min(2, n_slices))] * n_shards)
    hits = deletion.requests(n_shards, n_slices, None, (3, 40), jax.random.key(seed))
    depths = np.asarray(deletion.depths(table, hits))
    assert depths.shape == (3, 40, n_shards, table.shape[1])
    for stream, seen in zip(np.asarray(hits), depths, strict=True):
        deleted = np.zeros((n_shards, n_slices), bool)
        for hit, left in zip(stream, seen, strict=True):
            deleted[hit // n_slices, hit % n_slices] = True
            np.testing.assert_array_equal(left, deletion.surviving(table, deleted))


def test_counts_do_not_depend_on_the_devices_or_the_number_of_streams():
    table = np.stack([orders.cyclic(4, 2)] * 9)  # 36 slices: two words
    few = deletion.simulate(table, None, 5000, jax.random.key(3))
    more = deletion.simulate(table, None, 9000, jax.random.key(3))
    np.testing.assert_array_equal(more[:5000], few)
    spread = deletion.simulate(table, None, 5000, jax.random.key(3), mesh=mesh.make({"models": 1}))
    np.testing.assert_array_equal(spread, few)
    assert few.mean() == pytest.approx(deletion.expected_requests(9, 4, 2), rel=0.02)


def test_retention_is_the_inclusion_and_exclusion():
    table = orders.cyclic(4, 4)
    want = {
        1: [1, 1, 1, 0.6191, 0.1252],
        2: [1, 0.75, 0.4375, 0.0615, 0.001],
        3: [1, 0.25, 0.0625, 0.001, 0.0],
    }
    for keep, row in want.items():
        for requests, value in zip((1, 2, 3, 6, 12), row, strict=True):
            assert deletion.retention(4, table, keep, requests) == pytest.approx(value, abs=5e-5)
    assert deletion.retention_if_independent(4, 4, 1, 6) == pytest.approx(0.5434, abs=5e-5)
    assert deletion.retention_if_independent(4, 4, 2, 2) == pytest.approx(0.6836, abs=5e-5)


@given(st.integers(2, 4), st.integers(0, 4), st.integers(0, 4), st.data())
def test_retention_counts_all_streams(n_slices, keep, requests, data):
    keep = min(keep, n_slices)
    budget = data.draw(st.integers(1, 6))
    every = list(itertools.permutations(range(n_slices)))
    table = np.array([every[data.draw(st.integers(0, len(every) - 1))] for _ in range(budget)])
    streams = list(itertools.product(range(n_slices), repeat=requests))
    kept = sum(any(not set(order[:keep]) & set(stream) for order in table) for stream in streams)
    kept_share = deletion.retention(n_slices, table, keep, requests)
    assert kept_share == pytest.approx(kept / len(streams), abs=1e-12)


@given(st.integers(1, 4), st.integers(0, 20))
def test_four_cyclic_orders_retain_at_least_the_closed_form(keep, requests):
    exact = deletion.retention(4, orders.cyclic(4, 4), keep, requests)
    assert exact >= deletion.retention_if_independent(4, 4, keep, requests) - 1e-12


def test_the_closed_form_is_no_bound_in_general():
    exact = deletion.retention(5, orders.cyclic(5, 5), 2, 7)
    assert exact < deletion.retention_if_independent(5, 5, 2, 7) - 5e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deletion.expected_requests(0, 4, 1), "n_shards is 0"),
        (lambda: deletion.retention(4, orders.cyclic(4, 2), 5, 1), "keep is 5; 0 to 4"),
        (lambda: deletion.retention(5, orders.cyclic(4, 2), 1, 1), "have 4 slices; 5"),
        (lambda: deletion.retention(4, orders.cyclic(4, 2), 1, -1), "requests is -1"),
        (
            lambda: deletion.simulate(orders.cyclic(4, 2), None, 1, jax.random.key(0)),
            r"\[m, B, L\] is needed",
        ),
        (
            lambda: deletion.simulate(of_tops([0]), np.ones((2, 4)), 1, jax.random.key(0)),
            "the sum 8; probabilities with the sum 1",
        ),
        (
            lambda: deletion.simulate(
                of_tops([0]), np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0]]), 1, jax.random.key(0)
            ),
            "comes first has probability 0",
        ),
        (lambda: deletion.simulate(of_tops([0]), None, 0, jax.random.key(0)), "n_streams is 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
