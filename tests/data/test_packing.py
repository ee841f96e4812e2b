"""Sequences with less padding."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.data import text

CHATML, LLAMA3, LLAMA2, PLAIN = (text.TEMPLATES[n] for n in ("chatml", "llama3", "llama2", "plain"))


def sequences_of(sizes, seed=0):
    """Random sequences from (prompt length, response length), all tokens different from each other
    and from padding."""
    n, width = len(sizes), max(p + r for p, r in sizes) + 3
    tokens, where = np.zeros((n, width), np.int32), np.zeros((n, 12), np.int32)
    labels, fresh = (
        np.full((n, 12), -1, np.int32),
        1 + np.random.default_rng(seed).permutation(9999),
    )
    for i, (p, r) in enumerate(sizes):
        tokens[i, : p + r], fresh = fresh[: p + r], fresh[p + r :]
        where[i, :r], labels[i, :r] = np.arange(p - 1, p + r - 1), tokens[i, p : p + r]
    return text.Sequences(tokens, where, labels)


SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=30)


@given(SIZES, st.integers(32, 70))
def test_packing_loses_and_duplicates_nothing(sizes, length):
    sequences = sequences_of(sizes)
    packed = text.pack(sequences, length)
    again = text.pack(sequences, length)
    jax.tree.map(np.testing.assert_array_equal, packed, again)
    assert {x.dtype for x in jax.tree.leaves(packed)} == {np.dtype(np.int32)}
    assert packed.tokens.shape == packed.positions.shape == packed.labels.shape
    assert packed.tokens.shape[1] == length

    learned = np.sort(packed.labels[packed.labels >= 0])
    np.testing.assert_array_equal(learned, np.sort(sequences.labels[sequences.labels >= 0]))
    padding = packed.segments == 0
    assert not packed.tokens[padding].any() and not packed.positions[padding].any()
    assert (packed.labels[padding] == -1).all()

    seen = []
    for m, members in enumerate(packed.rows):
        assert packed.segments[m].max() == (members >= 0).sum()
        for segment, row in enumerate(members[members >= 0], 1):
            here = np.flatnonzero(packed.segments[m] == segment)
            p, r = sizes[row]
            np.testing.assert_array_equal(here, here[0] + np.arange(p + r))
            np.testing.assert_array_equal(packed.positions[m, here], np.arange(p + r))
            np.testing.assert_array_equal(packed.tokens[m, here], sequences.tokens[row, : p + r])
            expected = np.full(p + r, -1)
            expected[p - 1 : -1] = sequences.tokens[row, p : p + r]
            np.testing.assert_array_equal(packed.labels[m, here], expected)
            seen.append(row)
    assert sorted(seen) == list(range(len(sizes)))


@given(SIZES)
def test_packing_is_first_fit_decreasing(sizes):
    lengths, rows = np.array([p + r for p, r in sizes]), []
    for i in sorted(range(len(sizes)), key=lambda i: (-lengths[i], i)):
        fits = [row for row in rows if sum(lengths[row]) + lengths[i] <= 40]
        (fits[0] if fits else rows.append([]) or rows[-1]).append(i)
    packed = text.pack(sequences_of(sizes), 40)
    assert [row[row >= 0].tolist() for row in packed.rows] == rows


def test_an_example_that_fits_in_no_row():
    with pytest.raises(ValueError, match="pack: length is 9; row 1 of the sequences has 10 tokens"):
        text.pack(sequences_of([(3, 2), (5, 5)]), 9)


@given(SIZES, st.sets(st.integers(2, 40), max_size=4), st.integers(1, 8))
def test_buckets_restore_the_order(sizes, boundaries, multiple):
    sequences, edges = sequences_of(sizes), sorted({*boundaries, 32})
    lengths = np.array([p + r for p, r in sizes])
    found = text.buckets(sequences, edges, multiple=multiple)
    rows = np.concatenate([bucket.rows for bucket in found])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(sizes)))
    above = 0
    for bucket in found:
        of, own = bucket.sequences, lengths[bucket.rows]
        width, n_labels = of.tokens.shape[1], of.labels.shape[1]
        assert (np.diff(bucket.rows) > 0).all() and own.min() > above
        above = min(edge for edge in edges if edge >= own.max())
        assert own.max() <= width < own.max() + multiple
        assert of.lengths.max() <= n_labels < of.lengths.max() + multiple
        np.testing.assert_array_equal(of.tokens, sequences.tokens[bucket.rows, :width])
        np.testing.assert_array_equal(of.where, sequences.where[bucket.rows, :n_labels])
        np.testing.assert_array_equal(of.labels, sequences.labels[bucket.rows, :n_labels])
        np.testing.assert_array_equal(of.lengths, sequences.lengths[bucket.rows])


def test_boundaries_that_do_not_do():
    sequences = sequences_of([(3, 2), (5, 5)])
    for wrong in ([], [10, 10], [20, 10]):
        with pytest.raises(ValueError, match=r"boundaries are .*; they must ascend"):
            text.buckets(sequences, wrong)
    with pytest.raises(ValueError, match=r"are \[5, 9\]; the longest sequence, row 1, has 10"):
        text.buckets(sequences, [5, 9])
