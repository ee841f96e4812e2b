import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import evaluate
from jaxunlearn.evaluate import klom


def one_point(p, q, bins, clip, eps, variant):
    """The definition, for one point, with a loop over bins."""
    p = np.clip(p, -clip, clip)
    if variant != "paper":
        q = np.clip(q, -clip, clip)
    low, high = min(p.min(), q.min()), max(p.max(), q.max())
    if low == high:
        return 0.0
    if variant == "closed":
        number = lambda x: np.minimum(np.floor(bins * (x - low) / (high - low)), bins - 1)  # noqa: E731
        count = lambda x: np.array([(number(x) == b).mean() for b in range(bins)])  # noqa: E731
        p, q = count(p), count(q)
    else:
        edges = np.linspace(low, high, bins if variant == "paper" else bins + 1)
        wanted = range(bins) if variant == "paper" else range(1, bins + 1)

        def count(x):
            counts = np.array([(np.digitize(x, edges) == b).sum() for b in wanted])
            return counts / max(counts.sum(), 1)

        p, q = count(p), count(q)
    if variant == "paper":
        q = np.maximum(q, eps)
        q, eps = q / q.sum(), 0.0
    return sum(a * np.log(a / max(b, eps)) for a, b in zip(p, q, strict=True) if a > 0)


samples = st.tuples(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30)).map(
    lambda drawn: _draw(*drawn)
)


def _draw(seed, n, m):
    rng = np.random.default_rng(seed)
    shape = rng.choice(["wide", "rounded", "clipped", "plain"])
    scale = {"wide": 40.0, "clipped": 200.0}.get(shape, 1.0)
    p, q = rng.normal(size=(n, 6)) * scale, rng.normal(size=(m, 6)) * scale + rng.normal(size=6)
    if shape == "rounded":  # many samples on the edges of bins
        p, q = np.round(p), np.round(q)
    p[:, 0], q[:, 0] = 2.0, 2.0
    p[:, 1] = p[0, 1]
    q[:, 2] = q[0, 2]
    return p, q


@pytest.mark.parametrize("variant", ["closed", "easydub", "paper"])
@given(samples, st.integers(2, 25), st.sampled_from([1e-5, 1e-2]))
def test_equals_the_definition(variant, drawn, bins, eps):
    p, q = drawn
    got = klom(p, q, bins=bins, eps=eps, variant=variant)
    expected = [one_point(a, b, bins, 100.0, eps, variant) for a, b in zip(p.T, q.T, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(samples, st.integers(0, 100))
def test_properties(drawn, seed):
    p, q = drawn
    rng = np.random.default_rng(seed)
    scores = klom(p, q)
    np.testing.assert_array_equal(klom(rng.permutation(p), rng.permutation(q)), scores)
    np.testing.assert_array_equal(klom(p, p), 0.0)
    np.testing.assert_array_equal(klom(p, np.concatenate([p, p])), 0.0)
    assert (scores <= np.log(1e5) + 1e-9).all()
    # Exact powers of two commute with the binning.
    small_p, small_q = p / 64, q / 64
    np.testing.assert_array_equal(
        klom(small_p, small_q, clip=1e9), klom(small_p * 4, small_q * 4, clip=1e9)
    )


def test_infinite_margins_are_clipped_and_float32_is_accepted():
    p, q = np.array([[np.inf], [0.0]], np.float32), np.array([[100.0], [0.0]], np.float32)
    np.testing.assert_array_equal(klom(p, q), 0.0)


def test_noise_floor_of_gaussians():
    rng = np.random.default_rng(0)
    table = [
        (25, 2.34, 3.99), (50, 0.90, 1.73), (64, 0.63, 1.23), (100, 0.35, 0.69), (200, 0.15, 0.29)
    ]  # fmt: skip
    for n, mean, p95 in table:
        scores = klom(rng.normal(size=(n, 20_000)), rng.normal(size=(n, 20_000)))
        assert abs(scores.mean() - mean) < 0.01, (n, scores.mean())
        assert abs(np.percentile(scores, 95) - p95) < 0.03, (n, np.percentile(scores, 95))
    shifted = klom(rng.normal(size=(100, 20_000)) + 4, rng.normal(size=(100, 20_000)))
    assert 9.0 <= np.percentile(shifted, 95) <= 9.6


def test_the_floor_of_a_run_is_that_of_its_halves():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 50, 400))
    splits = evaluate.noise_floor(first, second)
    assert splits.shape == (20, 400)
    assert abs(splits.mean() - 0.90) < 0.03
    error = evaluate.standard_error(first, second, np.mean)
    assert abs(klom(first, second).mean() - splits.mean()) < 3 * error
    # Oracles of another distribution stand out.
    floor = evaluate.noise_floor(first + 1, second).mean()
    assert klom(first + 1, second).mean() - floor > 3 * error


@pytest.mark.parametrize(
    ("p", "q", "keyed", "message"),
    [
        (np.zeros(3), np.zeros((3, 1)), {}, r"\(3,\) and \(3, 1\)"),
        (np.zeros((3, 2)), np.zeros((3, 1)), {}, r"\[N, P\] and \[M, P\]"),
        (np.zeros((0, 2)), np.zeros((3, 2)), {}, "0 and 3 models"),
        (
            np.array([[0.0, np.nan]]),
            np.zeros((1, 2)),
            {},
            "first sample is NaN at model 0, point 1",
        ),  # noqa: E501
        (np.zeros((1, 2)), np.array([[np.nan, 0.0]]), {}, "second sample is NaN"),
        (np.zeros((1, 1)), np.zeros((1, 1)), {"bins": 1}, "bins is 1"),
        (np.zeros((1, 1)), np.zeros((1, 1)), {"clip": 0.0}, "clip is 0.0"),
        (np.zeros((1, 1)), np.zeros((1, 1)), {"eps": 0.0}, "eps is 0.0"),
        (np.zeros((1, 1)), np.zeros((1, 1)), {"variant": "v4"}, "variant is 'v4'"),
    ],
)
def test_bad_input(p, q, keyed, message):
    with pytest.raises(ValueError, match=message):
        klom(p, q, **keyed)


def test_summary():
    got = evaluate.summary(np.arange(101.0))
    assert got == {"mean": 50.0, "p50": 50.0, "p95": 95.0, "p99": 99.0}
    logits = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert evaluate.accuracy(logits, np.array([0, 1])) == 0.75
