"""The linear datamodeling score."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.evaluate import lds


@given(seed=st.integers(0, 1000), levels=st.integers(2, 6))
def test_it_is_the_spearman_correlation_with_ties(seed, levels):
    rng = np.random.default_rng(seed)
    attributions = rng.integers(0, 3, (12, 4)).astype(float)
    masks = rng.random((25, 12)) < 0.5
    outputs = rng.integers(0, levels, (25, 4)).astype(float)
    found = lds(attributions, masks, outputs)
    for target in range(4):
        own = masks @ attributions[:, target]
        if np.ptp(own) == 0 or np.ptp(outputs[:, target]) == 0:
            assert np.isnan(found[target])
        else:
            wanted = scipy.stats.spearmanr(own, outputs[:, target]).statistic
            np.testing.assert_allclose(found[target], wanted, atol=1e-12)


def test_only_order_counts():
    rng = np.random.default_rng(0)
    attributions, masks = rng.normal(size=(10, 3)), rng.random((30, 10)) < 0.5
    outputs = masks @ attributions
    np.testing.assert_allclose(lds(attributions, masks, np.exp(outputs)), 1)
    np.testing.assert_allclose(lds(5 * attributions, masks, -outputs), -1)
    assert np.isnan(lds(np.zeros((10, 3)), masks, outputs)).all()


@pytest.mark.parametrize(
    ("attributions", "masks", "outputs", "message"),
    [
        (np.ones((4, 2)), np.ones((3, 5)), np.ones((3, 2)), r"masks \[3, 5\]"),
        (np.ones((4, 2)), np.ones((3, 4)), np.ones((3, 1)), r"outputs \[3, 1\]"),
        (np.ones((4, 2)), np.ones((1, 4)), np.ones((1, 2)), "1 subset"),
        (np.full((4, 2), np.nan), np.ones((3, 4)), np.ones((3, 2)), "attributions"),
        (np.ones((4, 2)), np.full((3, 4), 0.5), np.ones((3, 2)), "besides 0 and 1"),
    ],
)
def test_bad_input(attributions, masks, outputs, message):
    with pytest.raises(ValueError, match=message):
        lds(attributions, masks, outputs)
