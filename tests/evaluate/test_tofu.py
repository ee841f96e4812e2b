import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxunlearn import evaluate
from jaxunlearn.evaluate import tofu

FULL = dict.fromkeys(tofu.PARTS, 0.5)
MEANS = st.sampled_from(["geometric", "arithmetic"])


def nlls(low=0.0, high=12.0):
    """NLLs of the right answer [B] and of wrong ones [B, J]."""
    values = st.floats(low, high)
    return st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
        lambda s: st.tuples(
            hnp.arrays(np.float64, s[:1], elements=values),
            hnp.arrays(np.float64, s, elements=values),
        )
    )


@given(nlls())
def test_truth_ratio_is_its_definition(pair):
    right, wrong = pair
    geometric = np.exp(-wrong.mean(1)) / np.exp(-right)
    arithmetic = np.exp(-wrong).mean(1) / np.exp(-right)
    np.testing.assert_allclose(tofu.truth_ratio(right, wrong), geometric, rtol=1e-12)
    found = tofu.truth_ratio(right, wrong, mean="arithmetic")
    np.testing.assert_allclose(found, arithmetic, rtol=1e-12)
    assert (found >= geometric * (1 - 1e-12)).all()


@given(nlls(), MEANS, st.floats(-5, 500), st.randoms())
def test_truth_ratio_knows_differences_only_and_no_order(pair, mean, shift, random):
    right, wrong = pair
    order = random.sample(range(wrong.shape[1]), wrong.shape[1])
    wanted = tofu.truth_ratio(right, wrong, mean=mean)
    found = tofu.truth_ratio(right + shift, wrong[:, order] + shift, mean=mean)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_truth_ratio_of_hopeless_answers_in_float32(mean):
    right = np.asarray([500, 500, 1, 5000], np.float32)
    wrong = np.asarray([[500, 500], [501, 501], [500, 500], [1, 1]], np.float32)
    found = tofu.truth_ratio(right, wrong, mean=mean)
    np.testing.assert_allclose(found[:2], [1, np.exp(-1)], rtol=1e-12)
    assert np.isfinite(found).all() and (found > 0).all()
    assert 0 <= tofu.truth_ratio_of_forgotten(found) <= 1
    assert 0 <= tofu.truth_ratio_of_others(found) <= 1
    assert 0 <= tofu.forget_quality(found, 1 / found) <= 1


def test_the_two_aggregations():
    assert tofu.truth_ratio_of_forgotten([1, 0.5, 2, 0]) == pytest.approx(0.5)
    assert tofu.truth_ratio_of_others([1, 0.5, 2, 0]) == pytest.approx(0.375)


@given(hnp.arrays(np.float64, 7, elements=st.floats(1e-6, 1e6)))
def test_the_forgotten_ratio_is_symmetric(ratio):
    found = tofu.truth_ratio_of_forgotten(ratio)
    assert found == pytest.approx(tofu.truth_ratio_of_forgotten(1 / ratio), rel=1e-9)
    assert 0 < found <= 1


@given(nlls(0, 12))
def test_option_probability_is_its_definition(pair):
    right, wrong = (np.exp(-a) for a in pair)
    wanted = right / (right + wrong.sum(1))
    np.testing.assert_allclose(tofu.option_probability(*pair), wanted, rtol=1e-12)


def test_option_probability_does_not_underflow():
    found = tofu.option_probability(np.float32([900, 900]), np.float32([[900], [950]]))
    np.testing.assert_allclose(found, [0.5, 1])


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_forget_quality_is_scipys_and_knows_ranks_only(seed, n, m, coarse):
    rng = np.random.default_rng(seed)
    first, second = rng.lognormal(size=n), rng.lognormal(0.4, size=m)
    if coarse:
        first, second = np.round(first, 1) + 0.1, np.round(second, 1) + 0.1
    found = tofu.forget_quality(first, second)
    assert found == scipy.stats.ks_2samp(first, second, method="exact").pvalue
    assert found == pytest.approx(tofu.forget_quality(second, first))
    if not coarse:
        assert found == pytest.approx(tofu.forget_quality(1 / first, 1 / second))
    assert tofu.forget_quality(first, first) == 1


def test_forget_quality_differs_from_the_asymptotic_test():
    first, second = np.linspace(1, 2, 8), np.linspace(1.4, 2.4, 8)
    asymptotic = evaluate.kolmogorov_smirnov(first[:, None], second[:, None])[1][0]
    assert abs(tofu.forget_quality(first, second) - asymptotic) > 1e-3


@given(hnp.arrays(np.float64, 9, elements=st.just(0.0) | st.floats(1e-9, 1)))
def test_model_utility_is_scipys_harmonic_mean(values):
    parts = dict(zip(tofu.PARTS, values.tolist(), strict=True))
    found = tofu.model_utility(parts)
    assert found == pytest.approx(scipy.stats.hmean(values), rel=1e-12)
    assert min(values) * (1 - 1e-12) <= found <= max(values) * (1 + 1e-12)


def test_model_utility_of_a_zero_and_of_equal_parts():
    assert tofu.model_utility(FULL) == pytest.approx(0.5)
    assert tofu.model_utility(FULL | {"retain_rouge": 0.0}) == 0
    assert len(tofu.PARTS) == 9
    assert tofu.model_utility({str(i): 0.25 for i in range(9)}) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({k: v for k, v in FULL.items() if k != "retain_rouge"}, "parts has 8 entries"),
        (FULL | {"forget_rouge": 0.5}, "parts has 10 entries, .*forget_rouge"),
        (FULL | {"world_facts_rouge": np.nan}, "world_facts_rouge.*nan"),
        (FULL | {"world_facts_rouge": 50.0}, r"50.0; it must lie in \[0, 1\]"),
        (FULL | {"world_facts_rouge": -0.1}, "-0.1"),
    ],
)
def test_model_utility_refuses(parts, message):
    with pytest.raises(ValueError, match=message):
        tofu.model_utility(parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tofu.truth_ratio([1.0], [[1.0]], mean="foo"), "mean is 'foo'; it must be geom"),
        (lambda: tofu.truth_ratio([1.0], [1.0]), r"perturbed_nll has shape \[1\]; \[B, J\]"),
        (lambda: tofu.truth_ratio([1.0, 2.0], [[1.0]]), "paraphrase_nll has 2 rows and pert.* 1"),
        (lambda: tofu.truth_ratio([np.nan], [[1.0]]), r"paraphrase_nll is nan at \[0\]"),
        (lambda: tofu.truth_ratio([1.0], np.ones((1, 0))), "no axis empty"),
        (lambda: tofu.option_probability([1.0], [[np.inf]]), r"false_nll is inf at \[0, 0\]"),
        (lambda: tofu.forget_quality([], [1.0]), "unlearned_ratio has shape"),
        (lambda: tofu.forget_quality([1.0], [-1.0]), "retain_ratio has -1.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
