import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jaxunlearn.evaluate import forgetting_epsilon, membership_auc

DELTA = 1e-5


def epsilon_by_hand(u, r):
    """The challenge's definition for one point, threshold by threshold."""
    positive, negative = (r, u) if np.median(r) > np.median(u) else (u, r)
    spans = np.ptp(positive), np.ptp(negative)
    if min(spans) / max(spans) < 0.01:
        return 50.0
    attacks = []
    low, high = min(u.min(), r.min()), max(u.max(), r.max())
    for t in np.linspace(low, high, int(np.ceil((high - low) * 100))):
        attacks.append(((negative >= t).mean(), (positive < t).mean()))
    narrow, wide = (negative, positive) if spans[0] >= spans[1] else (positive, negative)
    width = np.ptp(narrow)
    first, last = narrow.min() + width - 2.0, narrow.max() + 2.0
    for right in np.linspace(first, last, int(np.ceil((last - first) * 100))):
        for left in np.linspace(right - width - 2.0, right - width + 2.0, 400):
            inside = lambda x, a=left, b=right: ((a <= x) & (x <= b)).mean()  # noqa: E731
            attacks.append((inside(wide), 1 - inside(narrow)))
    best = 0.0
    for fpr, fnr in attacks:
        if fpr == 0 and fnr <= 1e-12:
            return 50.0
        if fpr == 0 or fnr <= 1e-12:
            continue
        for a, b in ((fpr, fnr), (fnr, fpr)):
            if 1 - DELTA - a > 0:
                best = max(best, np.log(1 - DELTA - a) - np.log(b))
    return min(best, 50.0)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (2.0, 1.0), (0.3, 0.2)])
def test_epsilon_follows_the_official_grid(shift, scale):
    rng = np.random.default_rng(5)
    u, r = rng.normal(size=(12, 1)), rng.normal(size=(12, 1)) * scale + shift
    got = forgetting_epsilon(u, r)
    np.testing.assert_allclose(got, [epsilon_by_hand(u[:, 0], r[:, 0])], atol=1e-9)


def test_epsilon_of_extremes():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(50, 3))
    np.testing.assert_array_equal(forgetting_epsilon(sample, sample + 20), 50.0)  # separated
    np.testing.assert_array_equal(forgetting_epsilon(sample * 1e-4, sample), 50.0)  # peaky
    constant = np.ones((50, 3))
    np.testing.assert_array_equal(forgetting_epsilon(constant, constant), 0.0)
    np.testing.assert_array_equal(forgetting_epsilon(constant, constant + 1), 50.0)
    # The same samples on both sides: only noise of the grid is left.
    assert (forgetting_epsilon(sample, sample) < 0.5).all()


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_epsilon_is_bounded_by_what_n_models_can_prove(seed):
    rng = np.random.default_rng(seed)
    u, r = rng.normal(size=(20, 2)), rng.normal(size=(30, 2)) + rng.normal(size=2)
    got = forgetting_epsilon(u, r)
    assert got.shape == (2,) and ((got >= 0) & ((got <= np.log(30)) | (got == 50.0))).all()


def test_more_shift_more_epsilon():
    rng = np.random.default_rng(1)
    u, r = rng.normal(size=(200, 5)), rng.normal(size=(200, 5))
    means = [forgetting_epsilon(u + d, r).mean() for d in (0.0, 1.0, 2.0)]
    assert means[0] < means[1] < means[2]


def test_epsilon_refuses():
    with pytest.raises(ValueError, match="delta is 1.0"):
        forgetting_epsilon(np.zeros((2, 1)), np.zeros((2, 1)), delta=1.0)
    with pytest.raises(ValueError, match="NaN at model 1"):
        forgetting_epsilon(np.array([[0.0], [np.nan]]), np.zeros((2, 1)))


@given(st.integers(0, 1000), st.booleans())
def test_auc_equals_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    members, others = rng.normal(size=(3, 17)) + 0.4, rng.normal(size=(3, 29))
    if ties:
        members, others = np.round(members), np.round(others)
    labels = np.r_[np.ones(17), np.zeros(29)]
    expected = [roc_auc_score(labels, np.r_[a, b]) for a, b in zip(members, others, strict=True)]
    np.testing.assert_allclose(membership_auc(members, others), expected, rtol=1e-12)


@given(st.integers(0, 1000))
def test_auc_within_classes_knows_no_difficulty(seed):
    """Classes of unlike difficulty and nothing learned by heart: 0.5 however they are mixed."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [20, 2, 5]), np.repeat([0, 1], [10, 40])
    scores = [rng.normal(size=(300, len(y))) + 5.0 * y for y in labels]
    mixed = membership_auc(*scores, classes=labels)
    np.testing.assert_allclose(mixed.mean(), 0.5, atol=0.03)
    assert abs(membership_auc(*scores).mean() - 0.5) > 0.1  # pooled
    parts = [
        membership_auc(scores[0][:, labels[0] == c], scores[1][:, labels[1] == c]) for c in (0, 1)
    ]
    np.testing.assert_allclose(mixed, (20 * parts[0] + 2 * parts[1]) / 22, rtol=1e-12)
    alone = membership_auc(*scores, classes=(np.full(27, 7), labels[1]))
    assert np.isnan(alone).all()
    with pytest.raises(ValueError, match="classes have shapes"):
        membership_auc(*scores, classes=(labels[1], labels[1]))


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 3)), "needed"),
        (np.zeros((2, 0)), np.zeros((2, 3)), "at least one point"),
        (np.full((2, 1), np.nan), np.zeros((2, 3)), "NaN"),
    ],
)
def test_auc_refuses(members, others, message):
    with pytest.raises(ValueError, match=message):
        membership_auc(members, others)


@pytest.mark.parametrize("classes", [3, "ab", ([0, 1],), ([0, None], [0]), ([0, 1], [0], [0])])
def test_auc_needs_classes_of_both(classes):
    with pytest.raises(ValueError, match="classes "):
        membership_auc(np.zeros((1, 2)), np.zeros((1, 1)), classes=classes)
