"""What deletions leave, by the cases of the paper's figure and by properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.exact import deletion, orders


@pytest.mark.parametrize(
    ("order", "deleted", "left"),
    [
        ((1, 2, 3, 4, 5), {3}, 2),
        ((1, 2, 3, 4, 5), {1, 3}, 0),
        ((2, 4, 5, 3, 1), {1, 3}, 3),
        ((2, 4, 5, 3, 1), set(), 5),
    ],
)
def test_the_cases_of_the_papers_figure(order, deleted, left):
    table = np.array(order)[None, None] - 1
    gone = np.isin(np.arange(5), [s - 1 for s in deleted])
    assert deletion.surviving(table, gone[None]).tolist() == [[left]]


SETS = st.lists(st.integers(0, 11), max_size=12)


@given(SETS, SETS, st.integers(1, 4))
def test_deletions_are_idempotent_in_any_order_and_never_bring_anything_back(first, more, budget):
    table = np.stack([orders.cyclic(4, budget)] * 3)

    def left(hits):
        gone = np.zeros((3, 4), bool)
        for hit in hits:
            gone[hit // 4, hit % 4] = True
        return deletion.surviving(table, gone)

    before, after = left(first), left(first + more)
    assert (after <= before).all()
    np.testing.assert_array_equal(after, left(more[::-1] + first + more))
    untouched = [a for a in range(3) if not any(hit // 4 == a for hit in more)]
    np.testing.assert_array_equal(after[untouched], before[untouched])
    served = deletion.served(after)
    np.testing.assert_array_equal(served.depth, after.max(1))
    assert (served.order == [list(row).index(row.max()) for row in after]).all()
    if budget > 1:
        fewer = deletion.surviving(table[:, :-1], np.zeros((3, 4), bool))
        assert (deletion.served(left([])).depth >= deletion.served(fewer).depth).all()


def test_only_living_shards_answer():
    outputs = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(
        deletion.combine(outputs, np.array([True, False, True])), outputs[[0, 2]].mean(0)
    )
    with pytest.raises(ValueError, match="no shard is alive"):
        deletion.combine(outputs, np.zeros(3, bool))


def test_triggers():
    left = np.array([[2, 1], [0, 0], [0, 4]])
    assert not deletion.needs_retraining(left)
    assert deletion.needs_retraining(left, trigger="any")
    assert not deletion.needs_retraining(left[[0, 2]], trigger="any")
    assert deletion.needs_retraining(left[[0, 2]], trigger="any", depth=3)
    assert not deletion.needs_retraining(left, depth=4)
    assert deletion.needs_retraining(left, depth=5)
    assert deletion.needs_retraining(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="trigger is 'some'"):
        deletion.needs_retraining(left, trigger="some")  # type: ignore[arg-type]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"deleted \[4\]; \[m, B, L\] and \[m, L\]"):
        deletion.surviving(orders.cyclic(4, 2)[None], np.zeros(4, bool))


def test_integers_of_any_kind_and_masks_of_any_kind():
    table = orders.cyclic(4, 4)
    want = deletion.retention(4, table, 2, 32)
    assert deletion.retention(np.int64(4), table, np.int64(2), np.int64(32)) == want > 0
    assert isinstance(deletion.retention(4, table, 2, np.int32(20)), float)
    np.testing.assert_array_equal(deletion.combine(np.array([[1.0], [100.0]]), [1, 0]), [1.0])
    with pytest.raises(ValueError, match="alive has shape"):
        deletion.combine(np.zeros((2, 3)), [True])
