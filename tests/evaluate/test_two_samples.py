"""Kolmogorov-Smirnov, Welch and Renyi against other implementations and their limits."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import evaluate


def draw(seed, n, m, coarse):
    """Two samples of 6 points; coarse ones have ties, within and between."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(n, 6)), rng.normal(0.5, 2, size=(m, 6))
    return (np.round(first), np.round(second)) if coarse else (first, second)


samples = st.builds(
    draw, st.integers(0, 999), st.integers(2, 30), st.integers(2, 30), st.booleans()
)


@given(samples)
def test_kolmogorov_smirnov_is_scipys(pair):
    distance, p_value = evaluate.kolmogorov_smirnov(*pair)
    for point in range(6):
        wanted = scipy.stats.ks_2samp(pair[0][:, point], pair[1][:, point], method="asymp")
        assert distance[point] == pytest.approx(wanted.statistic, abs=1e-12)
        assert p_value[point] == pytest.approx(wanted.pvalue, abs=1e-9)


@given(samples)
def test_welch_is_scipys(pair):
    t, p_value = evaluate.welch(*pair)
    for point in range(6):
        columns = [a[:, point] for a in pair]
        if min(np.ptp(c) for c in columns) == 0:
            continue
        wanted = scipy.stats.ttest_ind(*columns, equal_var=False)
        assert t[point] == pytest.approx(wanted.statistic, rel=1e-9, abs=1e-12)
        assert p_value[point] == pytest.approx(wanted.pvalue, rel=1e-9)


def test_welch_where_all_samples_are_equal():
    ones, sixths = np.full((5, 1), 1 / 6), np.full((7, 1), 1 / 6)
    assert evaluate.welch(ones, sixths) == (0, 1)
    t, p_value = evaluate.welch(ones, sixths + 1)
    assert t[0] == -np.inf and p_value[0] == 0


@given(samples, st.sampled_from([0.5, 2.0, 5.0, 10.0]))
def test_renyi_is_its_definition_and_grows_with_the_order(pair, order):
    found = evaluate.renyi(*pair, order=order)
    for point in range(6):
        p, q = (a[:, point] for a in pair)
        edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 21)
        if edges[0] == edges[-1]:
            assert found[point] == 0
            continue
        # As KLOM bins them: by their distance from the minimum.
        bins = [
            np.minimum(20 * (a - edges[0]) / (edges[-1] - edges[0]), 19).astype(int) for a in (p, q)
        ]
        p, q = (np.bincount(b, minlength=20) / len(b) for b in bins)
        q = np.maximum(q, 1e-5)
        wanted = np.log(sum(a**order * b ** (1 - order) for a, b in zip(p, q, strict=True) if a))
        assert found[point] == pytest.approx(wanted / (order - 1), abs=1e-9)
    assert (evaluate.renyi(*pair, order=order + 1) >= found - 1e-9).all()


def test_renyi_near_order_1_is_klom():
    pair = draw(0, 40, 40, False)
    near = evaluate.renyi(*pair, order=1 + 1e-6)
    # The oracle's mass is above 1 where it was raised to eps, hence no exact limit.
    np.testing.assert_allclose(near, evaluate.klom(*pair), atol=1e-3)
    with pytest.raises(ValueError, match="order is 1"):
        evaluate.renyi(*pair, order=1)


def test_of_a_large_order_only_the_worst_bin_counts():
    far, near = np.linspace(5, 6, 30)[:, None], np.linspace(0, 1, 30)[:, None]
    found = evaluate.renyi(far, near, order=300.0)
    assert 10 < found[0] < np.log(1e5) + 0.1


def test_equal_samples_differ_in_nothing():
    same = draw(1, 20, 20, True)[0]
    distance, p_value = evaluate.kolmogorov_smirnov(same, same[::-1])
    assert (distance < 1e-12).all() and (p_value == 1).all()
    assert np.abs(evaluate.renyi(same, same)).max() < 1e-12


def test_a_trajectory_tells_when_points_arrive_and_what_stopping_together_costs():
    rng = np.random.default_rng(0)
    oracle = rng.normal(size=(200, 3))
    start = np.array([6.0, 3.0, 0.0])
    # Every snapshot lowers all margins by 3: the points arrive after 2, 1 and 0 of them.
    snapshots = np.stack([rng.normal(size=(200, 3)) + start - 3 * t for t in range(4)])
    found = evaluate.trajectory(snapshots, oracle)
    assert found.klom.shape == found.gap.shape == (4, 3)
    np.testing.assert_allclose(found.gap[0], start, atol=0.4)
    np.testing.assert_array_equal(found.best, [2, 1, 0])
    assert found.reached[1] in (1, 2) and found.reached[0] in (2, 3)
    together = found.klom.mean(1).min()
    assert found.missed == pytest.approx(together - found.klom.min(0).mean()) and found.missed > 2
    never = evaluate.trajectory(snapshots[:1], oracle)
    assert (never.reached[:2] == -1).all() and never.missed == 0
    with pytest.raises(ValueError, match=r"\[S, N, P\]"):
        evaluate.trajectory(snapshots[0], oracle)
