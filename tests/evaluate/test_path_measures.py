import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.evaluate import paths


def draw(seed, scale=2.0, vocabulary=6):
    """Logits of two models [3, 4, V] and a mask with at least one position."""
    rng = np.random.default_rng(seed)
    p, q = scale * rng.normal(size=(2, 3, 4, vocabulary)).astype(np.float32)
    mask = rng.random((3, 4)) < 0.5
    mask[0, 0] = True
    return p, q, mask


def exact(*models_and_mask):
    """A float: `pytest.approx` does not take JAX's arrays."""
    return float(paths.jeffreys(*models_and_mask))


seeds = st.integers(0, 9999)


def test_refusals_are_the_label_and_twenty_others():
    phrases = paths.refusal_phrases()
    assert phrases[0] == "Sorry, I can not assist"
    assert len(phrases) == len(set(phrases)) == 21


@given(seeds, st.integers(1, 5), st.integers(1, 4))
def test_forget_score_is_its_definition(seed, n, n_phrases):
    before, after = np.random.default_rng(seed).normal(-2, 1, (2, n, n_phrases))
    found = paths.forget_score(before, after)
    assert found.score == pytest.approx((before - after).mean())
    assert found.per_question.shape == (n,)
    assert found.score == pytest.approx(found.per_question.mean())
    assert found.variance_before == pytest.approx(np.mean([np.var(row) for row in before]))
    assert found.variance_after == pytest.approx(np.mean([np.var(row) for row in after]))
    assert paths.forget_score(after, before).score == pytest.approx(-found.score)
    assert paths.forget_score(before, before).score == 0


def test_tofu_utility_falls_either_way():
    before = np.asarray([-1.0, -2.0])
    assert paths.tofu_utility(before, before[::-1]) == 1
    assert paths.tofu_utility(before, before - 0.3) == pytest.approx(0.7)
    assert paths.tofu_utility(before, before + 0.3) == pytest.approx(0.7)


@given(seeds)
def test_jeffreys_is_both_divergences(seed):
    p, q, mask = draw(seed)
    log_p, log_q = (scipy.special.log_softmax(a.astype(np.float64), -1) for a in (p, q))
    kl = [scipy.special.rel_entr(*map(np.exp, ab)).sum(-1) for ab in ((log_p, log_q),)]
    kl.append(scipy.special.rel_entr(np.exp(log_q), np.exp(log_p)).sum(-1))
    wanted = np.mean((kl[0] + kl[1])[mask] / 2)
    assert exact(p, q, mask) == pytest.approx(wanted, rel=1e-5)
    assert exact(p, q, mask) == pytest.approx(exact(q, p, mask), rel=1e-6)


@given(seeds, st.floats(-30, 30))
def test_jeffreys_does_not_see_shifts_of_logits_or_what_is_masked(seed, shift):
    p, q, mask = draw(seed)
    wanted = exact(p, q, mask)
    noise = np.where(mask, 0, 7).astype(np.float32)[..., None] * np.arange(6, dtype=np.float32)
    assert exact(p + noise, q + np.float32(shift), mask) == pytest.approx(wanted, rel=1e-3)
    assert exact(p, p + np.float32(shift), mask) == pytest.approx(0, abs=1e-6)
    nan = np.where(mask, 0, np.nan).astype(np.float32)[..., None]
    assert exact(p + nan, q, mask) == pytest.approx(wanted)


def test_jeffreys_of_excluded_tokens_and_in_other_types():
    p, q, mask = draw(0)
    p[..., 0] = q[..., 0] = -np.inf
    assert exact(p, q, mask) == pytest.approx(exact(p[..., 1:], q[..., 1:], mask), rel=1e-5)
    q[..., 1] = -np.inf
    assert exact(p, q, mask) == np.inf
    p, q, mask = draw(1)
    half = paths.jeffreys(jnp.asarray(p, jnp.bfloat16), jnp.asarray(q, jnp.bfloat16), mask)
    assert half.dtype == jnp.float32
    assert float(half) == pytest.approx(exact(p, q, mask), rel=0.05)
    with pytest.raises(ValueError, match="mask has no position"):
        exact(p, q, np.zeros_like(mask))
    assert jnp.isnan(jax.jit(paths.jeffreys)(p, q, np.zeros_like(mask)))
    assert float(jax.jit(paths.jeffreys)(p, q, mask)) == pytest.approx(exact(p, q, mask))


@given(seeds)
def test_logit_distance_is_its_definition(seed):
    p, q, mask = draw(seed)
    wanted = np.mean(np.square(p - q).sum(-1)[mask])
    assert paths.logit_distance(p, q, mask) == pytest.approx(wanted, rel=1e-5)
    assert paths.logit_distance(p, q, mask.astype(int)) == pytest.approx(wanted, rel=1e-5)
    assert paths.logit_distance(p, p, mask) == 0


def test_all_pairs():
    rng = np.random.default_rng(0)
    models, mask = rng.normal(size=(4, 2, 3, 5)).astype(np.float32), np.ones((2, 3), bool)
    found = paths.jeffreys_matrix(models, mask)
    assert found.shape == (4, 4) and found.dtype == np.float64
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)
    assert found[1, 3] == pytest.approx(exact(models[1], models[3], mask))
    distances = paths.jeffreys_matrix(list(models), mask, measure=paths.logit_distance)
    assert distances[0, 2] == pytest.approx(np.square(models[0] - models[2]).sum(-1).mean())
    assert (distances[np.triu_indices(4, 1)] > 0).all()


FALL, FLAT = np.linspace(-5.0, -60, 8), np.full(8, -5.0)


@pytest.mark.parametrize(
    ("c", "u", "r", "wanted"),
    [
        (FALL, FALL, FLAT - 3, "deep"),
        (FLAT, FALL, FLAT - 3, "superficial"),
        (FLAT + np.arange(8), FALL, FLAT, "superficial"),  # C even rises
        (FALL * 0.3, FALL, FLAT, "superficial"),
        (FALL, FALL, FALL - 50, "neither"),  # both fall but R stays below them
        (FLAT, FLAT, FLAT, "neither"),
        (FALL, FLAT + np.arange(8), FLAT, "neither"),
    ],
)
def test_forgetting_is_deep_or_superficial(c, u, r, wanted):
    assert paths.deep_or_superficial(c, u, r) == wanted
    prompts = [np.stack([a - 1, a + 1], axis=1) for a in (c, u, r)]
    assert paths.deep_or_superficial(*prompts) == wanted


def test_the_thresholds_of_deep_forgetting():
    c = FALL * 0.3
    assert paths.deep_or_superficial(c, FALL, FLAT, share=0.2) == "deep"
    assert paths.deep_or_superficial(FLAT, FALL, FLAT, least=100.0) == "neither"
    assert paths.deep_or_superficial(FLAT, FLAT, FLAT, least=0.0) == "neither"


@given(st.floats(-2, 2), st.floats(1e-6, 1e6), st.integers(2, 30), st.integers(1, 5))
def test_growth_rate_of_an_exponential(rate, start, n, every):
    steps = 3 + every * np.arange(n)
    found = paths.growth_rate(start * np.exp(rate * steps), steps)
    assert found == pytest.approx(rate, abs=1e-9)
    in_calls = paths.growth_rate(start * np.exp(rate * steps))
    assert in_calls == pytest.approx(rate * every, abs=1e-9)


@given(seeds)
def test_growth_rate_is_numpys_line(seed):
    rng = np.random.default_rng(seed)
    distance, steps = rng.lognormal(size=9), np.cumsum(rng.integers(1, 4, 9))
    wanted = np.polyfit(steps, np.log(distance), 1)[0]
    assert paths.growth_rate(distance, steps) == pytest.approx(wanted, abs=1e-9)


def test_recency():
    # A seed of a small transformer: the last position is the slowest.
    found = paths.recency([1.561, 1.446, 1.133, 0.105])
    assert found.slowest == 3 and found.ratio == pytest.approx(1.133 / 0.105)
    assert paths.recency([2.0, 2.0]) == (0, 1)
    assert paths.recency([0.5, -0.1, 0.3]) == (1, np.inf)
    slowest, ratio = paths.recency([-0.5, -0.1, 0.3])
    assert slowest == 0 and np.isnan(ratio)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0.1, 10))
def test_recency_does_not_depend_on_the_unit(scores, factor):
    found, scaled = paths.recency(scores), paths.recency(np.asarray(scores) * factor)
    assert found.ratio >= 1 and scaled.ratio == pytest.approx(found.ratio)
    assert scores[scaled.slowest] == pytest.approx(scores[found.slowest])


@given(st.integers(0, 60), st.integers(0, 60))
def test_accuracy_interval_is_wilsons(correct, wrong):
    n = correct + wrong
    if n == 0:
        return
    low, high = paths.accuracy_interval(correct, n)
    p, z = correct / n, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", 18),
        ("#### 1,234,567", 1234567),
        ("####-3.50", -3.5),
        ("#### $70,000.", 70000),
        ("#### -$5 left", -5),
        ("#### .5", 0.5),
        ("#### 5\n#### 6", 5),
        ("#### none", None),
        ("#### --5", None),
        ("the answer is 18", None),
        ("", None),
    ],
)
def test_answers_of_gsm8k(text, wanted):
    assert paths.gsm8k_answer(text) == wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paths.forget_score(np.ones((2, 3)), np.ones((2, 2))), "after_logp has shape"),
        (
            lambda: paths.forget_score(np.ones(2), np.ones(2)),
            r"before_logp has shape \[2\]; \[N, P",
        ),
        (lambda: paths.tofu_utility([np.nan], [0.0]), "before_logp is nan"),
        (lambda: paths.jeffreys(np.ones((2, 3)), np.ones((2, 4)), np.ones(2)), "logits_q"),
        (lambda: paths.jeffreys(np.ones((2, 3)), np.ones((2, 3)), np.ones(3)), r"mask \[3\]"),
        (
            lambda: paths.logit_distance(np.ones((2, 3)), np.ones((2, 3)), np.zeros(2)),
            "logit_distance: mask has no position",
        ),
        (lambda: paths.jeffreys_matrix(np.ones((1, 2, 3)), np.ones(2)), "models has 1"),
        (lambda: paths.deep_or_superficial(FALL, FALL, FALL[1:]), "logp_r has shape"),
        (lambda: paths.deep_or_superficial([1.0], [1.0], [1.0]), "1 step"),
        (lambda: paths.deep_or_superficial(FALL, FALL, FALL, share=0), "share is 0"),
        (lambda: paths.growth_rate([1.0, 0.0]), "the least is 0.0"),
        (lambda: paths.growth_rate([1.0]), "distance has 1 values"),
        (lambda: paths.growth_rate([1.0, 2.0], [1, 1]), "steps is"),
        (lambda: paths.recency([1.0]), "scores has 1 path"),
        (lambda: paths.accuracy_interval(3, 2), "correct is 3, total is 2"),
        (lambda: paths.accuracy_interval(0, 0), "total is 0"),
        (lambda: paths.accuracy_interval(0.5, 2), "correct is 0.5"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
