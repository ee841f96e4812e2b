"""Orders of slices: different early, likely deletions late."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.exact import orders

PRIORS = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5).map(
    lambda w: np.array(w) / np.sum(w)
)


def is_latin(square):
    return all(len(set(column)) == len(column) for column in square.T)


@given(st.integers(1, 6), st.data())
def test_cyclic_orders_are_distinct_permutations_with_balanced_tops(n_slices, data):
    budget = data.draw(st.integers(1, min(math.factorial(n_slices), 200)))
    table = orders.cyclic(n_slices, budget)
    assert table.shape == (budget, n_slices)
    orders.check(table, n_slices)
    assert len(set(map(tuple, table))) == budget
    tops = np.bincount(table[:, 0], minlength=n_slices)
    assert tops.max() - tops.min() <= 1
    if budget <= n_slices:
        assert is_latin(table)


def test_cyclic_orders_are_the_papers():
    want = [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]]
    np.testing.assert_array_equal(orders.cyclic(4, 4), want)
    np.testing.assert_array_equal(orders.cyclic(4, 2), want[:2])
    for n_slices, budget in [(4, 13), (5, 7), (6, 30), (4, 24)]:
        assert len(set(map(tuple, orders.cyclic(n_slices, budget)))) == budget
    assert orders.diversity(orders.cyclic(5, 5)) == 5


@given(PRIORS, st.sampled_from([1.0, 3.0, 20.0]))
def test_matching_is_a_latin_square_that_is_best_at_every_position(prior, horizon):
    n = len(prior)
    table = orders.matching(prior, n, horizon=horizon)
    orders.check(table, n)
    assert is_latin(table)
    table = table[np.argsort(table[:, 0])]
    for length in range(2, n + 1):
        before = [tuple(order[: length - 1]) for order in table]

        def total(chosen, before=before):
            return sum(
                orders.score(np.array([[*order, v]]), prior, horizon=horizon)[0]
                for order, v in zip(before, chosen, strict=True)
            )

        possible = [
            chosen
            for chosen in itertools.permutations(range(n))
            if all(v not in order for order, v in zip(before, chosen, strict=True))
        ]
        best = max(map(total, possible))
        assert total(table[:, length - 1]) >= best * (1 - 1e-9)


@given(PRIORS, st.sampled_from([1.0, 30.0, 1e4]), st.data())
def test_matching_keeps_the_orders_of_highest_score(prior, horizon, data):
    budget = data.draw(st.integers(1, len(prior)))
    every = orders.matching(prior, len(prior), horizon=horizon)
    scores = orders.score(every, prior, horizon=horizon)
    assert (np.diff(scores) <= 1e-12 * scores[:-1]).all()
    np.testing.assert_array_equal(orders.matching(prior, budget, horizon=horizon), every[:budget])


def test_likely_deletions_come_late():
    best = orders.matching([0.4, 0.3, 0.2, 0.1], 2, horizon=100)
    assert best[0].tolist() == [3, 2, 1, 0] and best[1][0] == 2


def test_random_orders_are_distinct_and_conditional_ones_avoid_likely_slices():
    rng = np.random.default_rng(0)
    assert len(set(map(tuple, orders.random(4, 24, rng)))) == 24
    prior = np.array([0.9, 0.05, 0.03, 0.02])
    first = [orders.conditional(prior, 1, rng)[0, 0] for _ in range(2000)]
    share = np.bincount(first, minlength=4) / 2000
    np.testing.assert_allclose(share, (1 - prior) / 3, atol=0.04)
    assert len(set(map(tuple, orders.conditional(prior, 24, rng)))) == 24


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orders.cyclic(0, 1), "n_slices is 0"),
        (lambda: orders.cyclic(3, 7), "budget is 7; 3 slices have 1 to 3! orders"),
        (lambda: orders.cyclic(3, 0), "budget is 0"),
        (lambda: orders.matching([0.5, 0.5], 3, horizon=1), "budget is 3; 1 to 2"),
        (lambda: orders.matching([0.9, 0.9], 1, horizon=1), "sum of at most 1"),
        (lambda: orders.matching([0.5, 0.5], 1, horizon=-1), "horizon is -1"),
        (lambda: orders.matching([[0.5]], 1, horizon=1), r"shape \[1, 1\]"),
        (lambda: orders.conditional([1.0, 0.0], 1, np.random.default_rng(0)), "never be drawn"),
        (lambda: orders.diversity(np.array([[0, 1]])), "two are needed"),
        (lambda: orders.check(np.array([[0, 0]])), r"orders\[0\] is \[0, 0\]; it is no perm"),
        (lambda: orders.check(np.array([[0, 1]]), 3), "have 2 slices; 3 are needed"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("n_slices", range(1, 6))
def test_a_larger_budget_adds_orders_and_uses_first_slices_evenly(n_slices):
    whole = orders.cyclic(n_slices, math.factorial(n_slices))
    assert len({tuple(order) for order in whole.tolist()}) == len(whole)
    for budget in range(1, len(whole) + 1):
        part = orders.cyclic(n_slices, budget)
        np.testing.assert_array_equal(part, whole[:budget])
        firsts = np.bincount(part[:, 0], minlength=n_slices)
        assert firsts.max() - firsts.min() <= 1


def test_orders_that_are_hardly_ever_drawn_are_found():
    drawn = orders.conditional([1 - 2e-9, 1e-9, 1e-9], 6, np.random.default_rng(0))
    assert len({tuple(order) for order in drawn.tolist()}) == 6


def test_equally_good_orders_come_by_their_first_slice():
    table = orders.matching(np.array([3, 4, 6, 3]) / 16, 4, horizon=1)
    scores = orders.score(table, np.array([3, 4, 6, 3]) / 16, horizon=1)
    for i in range(3):
        later = scores[i] > scores[i + 1] + 1e-9
        assert later or table[i, 0] < table[i + 1, 0]
