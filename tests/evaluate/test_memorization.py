import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.evaluate import memorization, tofu


class Stats(NamedTuple):
    """The fields of TokenStats."""

    logp: np.ndarray
    hit: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    valid: np.ndarray


def make(hits, logp=None):
    """One response from its row of hits."""
    hit = np.asarray([hits], bool)
    logp = np.full(hit.shape, -1.0) if logp is None else np.asarray([logp], np.float64)
    return Stats(logp, hit, logp - 0.5, np.ones_like(logp), np.ones_like(hit))


def draw(seed, n_rows, width, least=0):
    """Random logits; rows of different lengths, padding anywhere and full of NaN."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n_rows, width, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (n_rows, width))
    is_label = labels[..., None] == np.arange(5)
    logits = np.where(is_label, logits + 2, logits)
    all_logp = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)), np.float64)
    n = rng.integers(least, width + 1, n_rows)
    valid = rng.permuted(np.arange(width) < n[:, None], axis=1)
    mean = (np.exp(all_logp) * all_logp).sum(-1)
    variance = (np.exp(all_logp) * all_logp**2).sum(-1) - mean**2
    logp = all_logp[is_label].reshape(valid.shape)
    garbage = np.where(valid, 0, np.nan)
    hit = (logits.argmax(-1) == labels) | ~valid
    return Stats(logp + garbage, hit, mean + garbage, variance + garbage, valid), all_logp, labels


seeds = st.integers(0, 9999)


def strength_by_hand(hits):
    """The loop of open-unlearning."""
    k = 0
    for k in range(len(hits)):
        if all(hits[k:]):
            break
    return 1 - k / len(hits) if hits else 0


@given(seeds, st.booleans())
def test_memorization_is_its_definition(seed, drop_last):
    stats, _, _ = draw(seed, 4, 7)
    exact = memorization.exact_memorization(stats, drop_last=drop_last)
    strength = memorization.extraction_strength(stats, drop_last=drop_last)
    for row in range(4):
        hits = stats.hit[row][stats.valid[row]].tolist()
        hits = hits[:-1] if drop_last else hits
        assert strength[row] == pytest.approx(strength_by_hand(hits))
        if hits:
            assert exact[row] == pytest.approx(np.mean(hits))
        else:
            assert np.isnan(exact[row])


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        ([1, 1, 1, 1], 1, 1),
        ([0, 0, 0, 0], 0, 0.25),
        ([1, 1, 1, 0], 0.75, 0.25),  # the last one wrong: 1/n, not 0
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 0, 1, 1], 0.75, 0.5),
        ([0], 0, 1),  # one wrong token: k is 0
    ],
)
def test_memorization_at_the_edges(hits, exact, strength):
    stats = make(hits)
    assert memorization.exact_memorization(stats, drop_last=False) == pytest.approx(exact)
    assert memorization.extraction_strength(stats, drop_last=False) == pytest.approx(strength)
    # With one more label at the end, which is dropped.
    for last in (0, 1):
        longer = make([*hits, last])
        assert memorization.exact_memorization(longer) == pytest.approx(exact)
        assert memorization.extraction_strength(longer) == pytest.approx(strength)


def test_responses_without_tokens():
    for stats in (make([]), make([1])):  # nothing, and nothing but the last label
        assert np.isnan(memorization.exact_memorization(stats)).all()
        assert memorization.extraction_strength(stats) == 0
    stats = make([1, 1])._replace(valid=np.zeros((1, 2), bool))
    for measure in (
        memorization.probability,
        memorization.loss,
        memorization.min_k,
        memorization.min_k_plus_plus,
    ):
        with pytest.raises(ValueError, match="row 0 of stats has no token"):
            measure(stats)
    with pytest.raises(ValueError, match="min_k: row 0"):
        memorization.min_k(make([1]), drop_last=True)


def by_hand(stats, all_logp, labels, row, k, drop_last, standardised):
    """Min-K and Min-K++ as open-unlearning has them, from all log-probabilities."""
    at = np.flatnonzero(stats.valid[row])
    at = at[:-1] if drop_last else at
    chosen = all_logp[row, at, labels[row, at]]
    if standardised:
        p = np.exp(all_logp[row, at])
        mu = (p * all_logp[row, at]).sum(-1)
        sigma = (p * np.square(all_logp[row, at])).sum(-1) - np.square(mu)
        chosen = (chosen - mu) / np.sqrt(np.clip(sigma, 1e-6, None))
    return -np.mean(sorted(chosen)[: max(1, int(len(chosen) * k))])


@given(seeds, st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0]), st.booleans())
def test_min_k_is_its_definition(seed, k, drop_last):
    stats, all_logp, labels = draw(seed, 3, 11, least=2)
    plain = memorization.min_k(stats, k, drop_last=drop_last)
    standard = memorization.min_k_plus_plus(stats, k, drop_last=drop_last)
    for row in range(3):
        arguments = stats, all_logp, labels, row, k, drop_last
        assert plain[row] == pytest.approx(by_hand(*arguments, False))
        assert standard[row] == pytest.approx(by_hand(*arguments, True))


@given(seeds)
def test_min_k_falls_to_the_loss(seed):
    stats, _, _ = draw(seed, 3, 9, least=1)
    values = [memorization.min_k(stats, k) for k in (0.05, 0.2, 0.4, 0.8, 1.0)]
    for larger, smaller in zip(values, values[1:], strict=False):
        assert (larger >= smaller - 1e-12).all()
    np.testing.assert_allclose(values[-1], memorization.loss(stats))
    np.testing.assert_allclose(memorization.probability(stats), np.exp(-values[-1]))


@given(seeds)
def test_padding_does_not_matter(seed):
    stats, _, _ = draw(seed, 3, 6, least=2)
    wider = Stats(*(np.insert(a, 2, 1, axis=1) for a in stats))
    wider.valid[:, 2] = False
    jax_arrays = Stats(*(jnp.asarray(a) for a in stats))
    for measure in (
        memorization.probability,
        memorization.exact_memorization,
        memorization.extraction_strength,
        memorization.min_k,
        memorization.min_k_plus_plus,
    ):
        np.testing.assert_array_equal(measure(wider), measure(stats))
        np.testing.assert_allclose(measure(jax_arrays), measure(stats), rtol=1e-4)


def test_a_certain_model_does_not_divide_by_zero():
    stats = make([1, 1])._replace(variance=np.zeros((1, 2)), mean=np.full((1, 2), -1.0))
    assert memorization.min_k_plus_plus(stats) == 0
    stats = stats._replace(mean=np.zeros((1, 2)))
    assert memorization.min_k_plus_plus(stats) == pytest.approx(1e3)


def test_probability_zlib_and_reference():
    stats = make([1, 1], [-1.0, -3.0])
    assert memorization.probability(stats) == pytest.approx(np.exp(-2))
    assert memorization.probability(stats, drop_last=True) == pytest.approx(np.exp(-1))
    assert tofu.probability is memorization.probability
    text = "Ein Text, ein Text, ein Täxt"
    n_bytes = len(zlib.compress(bytes(text, "utf-8")))
    assert memorization.zlib(stats, [text]) == pytest.approx(2 / n_bytes)
    other = make([1, 1, 1], [-1.0, -1.0, -1.0])
    assert memorization.reference(stats, other) == pytest.approx(1)
    assert memorization.reference(stats, stats) == 0


def test_the_attacks_find_what_was_learned():
    rng = np.random.default_rng(0)
    logp = -np.abs(rng.normal(size=(40, 20))) * np.repeat([[1.0], [3.0]], 20, axis=0)
    stats = Stats(logp, logp > -1, logp - 1, np.ones_like(logp), np.ones(logp.shape, bool))
    for score in (memorization.loss, memorization.min_k):
        found = score(stats)
        assert memorization.auc(-found[:20], -found[20:]) > 0.95


GOOD = make([1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memorization.min_k(GOOD, 0), r"min_k: k is 0; it must lie in \(0, 1\]"),
        (lambda: memorization.min_k_plus_plus(GOOD, 1.5), "min_k_plus_plus: k is 1.5"),
        (lambda: memorization.min_k(GOOD, np.nan), "k is nan"),
        (
            lambda: memorization.loss(GOOD._replace(valid=GOOD.valid.astype(int))),
            r"stats.valid is int64 \[1, 3\]; bool",
        ),
        (
            lambda: memorization.loss(GOOD._replace(logp=np.full((1, 3), np.nan))),
            "stats.logp is nan in row 0, position 0",
        ),
        (
            lambda: memorization.min_k_plus_plus(GOOD._replace(mean=np.ones((1, 2)))),
            r"stats.mean has shape \[1, 2\]; \[1, 3\] is needed",
        ),
        (
            lambda: memorization.exact_memorization(GOOD._replace(hit=np.ones((1, 3)))),
            "stats.hit is float64",
        ),
        (lambda: memorization.zlib(GOOD, ["a", "b"]), "texts has 2 texts; 1 are needed"),
        (lambda: memorization.zlib(GOOD, "a"), "texts is 'a'"),
        (
            lambda: memorization.reference(GOOD, Stats(*(np.repeat(a, 2, 0) for a in GOOD))),
            "reference_stats has 2 responses; 1 are needed",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
