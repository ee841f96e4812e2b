"""Accuracy under deletions is that of the networks that are left."""

import jax
import numpy as np
import pytest

from jaxunlearn.exact import curves, deletion, orders


def test_a_curve_is_the_mean_over_what_is_left_request_by_request():
    rng = np.random.default_rng(0)
    table = np.stack([orders.cyclic(3, 2)] * 2)
    outputs = rng.normal(size=(2, 3, 3, 40, 4)).astype(np.float32)  # of three orders: two are meant
    labels = rng.integers(0, 4, 40)
    hits = np.asarray(deletion.requests(2, 3, None, (5, 12), jax.random.key(0)))
    curve = curves.follow(curves.accuracy, outputs, labels, table, hits)
    assert curve.score.shape == (5, 13)
    for stream in range(5):
        deleted = np.zeros((2, 3), bool)
        for request in range(13):
            if request:
                deleted[divmod(hits[stream, request - 1], 3)] = True
            served = deletion.served(deletion.surviving(table, deleted))
            alive = served.depth > 0
            assert curve.living[stream, request] == alive.sum()
            np.testing.assert_array_equal(curve.depth[stream, request], served.depth)
            if not alive.any():
                assert np.isnan(curve.score[stream, request])
                continue
            answers = [outputs[a, served.order[a], served.depth[a] - 1] for a in range(2)]
            mean = deletion.combine(np.stack(answers), alive)
            want = (mean.argmax(-1) == labels).mean()
            assert curve.score[stream, request] == pytest.approx(want, abs=1e-6)


def test_shapes_that_do_not_fit():
    table, labels = np.stack([orders.cyclic(3, 2)] * 2), np.zeros(4)
    with pytest.raises(ValueError, match=r"need \[2, at least 2, 3, n, ...\]"):
        curves.follow(curves.accuracy, np.zeros((2, 1, 3, 4, 2)), labels, table, np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"hits have shape \[1\]"):
        curves.follow(curves.accuracy, np.zeros((2, 2, 3, 4, 2)), labels, table, np.zeros(1, int))
