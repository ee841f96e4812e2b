"""Random subsets of a training set."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.attribution import masks

KEY = jax.random.key(0)


@settings(max_examples=12)  # each one is another program
@given(n=st.integers(2, 40), alpha=st.floats(0.05, 0.95), n_members=st.integers(1, 5))
def test_exact_subsets_have_one_size(n, alpha, n_members):
    size = int(alpha * n + 1e-9)
    if size == 0:
        with pytest.raises(ValueError, match="tell nothing"):
            masks.exact(KEY, n_members, n, alpha)
        return
    found = masks.exact(KEY, n_members, n, alpha)
    assert found.shape == (n_members, n)
    assert found.dtype == bool
    assert (found.sum(1) == size).all()
    table = masks.tables(found)
    assert table.shape == (n_members, size)
    assert all(
        set(row) == set(np.flatnonzero(mask)) for row, mask in zip(table, found, strict=True)
    )


def test_a_member_keeps_its_subset_when_more_are_added():
    for draw in (masks.exact, masks.bernoulli):
        np.testing.assert_array_equal(draw(KEY, 3, 50), draw(KEY, 9, 50)[:3])


@pytest.mark.parametrize("draw", [masks.exact, masks.bernoulli])
def test_every_point_and_every_pair_is_as_frequent_as_it_should_be(draw):
    found = draw(KEY, 20000, 10, 0.3).astype(float)
    np.testing.assert_allclose(found.mean(0), 0.3, atol=0.015)
    both = found.T @ found / len(found)
    pair = 0.09 if draw is masks.bernoulli else 0.3 * 2 / 9
    np.testing.assert_allclose(both[~np.eye(10, dtype=bool)], pair, atol=0.012)


def test_tables_of_subsets_of_different_sizes():
    table = masks.tables(np.array([[1, 0, 1, 1], [0, 1, 0, 0]]))
    np.testing.assert_array_equal(table, [[0, 2, 3], [1, -1, -1]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.exact(KEY, 0, 10), "n_members is 0"),
        (lambda: masks.exact(KEY, 3, 10, 1.0), "alpha is 1.0"),
        (lambda: masks.bernoulli(KEY, 3, 1), "n is 1"),
        (lambda: masks.tables(np.array([[1, 0], [0, 0]])), "member 1 has an empty subset"),
        (lambda: masks.check(np.array([[0.5, 1.0]])), "besides 0 and 1"),
        (lambda: masks.check(np.ones(3)), r"shape \[3\]"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
