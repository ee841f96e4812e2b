"""What the losses of single tokens, logits and hidden states promise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import losses
from jaxunlearn.unlearn import objectives as obj
from tests.unlearn.toy_model import (
    CONTROL,
    FEATURES,
    LABELS,
    LENGTHS,
    LOGITS,
    REF_LOGITS,
    VALID,
    B,
    R,
    V,
)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_kl_is_zero_and_flat_at_the_reference(scale):
    ref = jax.random.normal(jax.random.key(0), (3, R, V)) * scale
    kl = jax.jit(jax.value_and_grad(obj.kl_retain))
    for mask in (None, jnp.asarray(VALID[:3])):
        value, grad = kl(ref, ref, mask)
        assert value == 0
        np.testing.assert_allclose(grad, 0, atol=1e-7)
        assert kl(ref + FEATURES[0, :3, :, :1], ref, mask)[0] < 1e-5  # a shift of all
        assert kl(ref * 0.5, ref, mask)[0] > 1e-3


def test_kl_over_all_positions_counts_padding_too():
    logits, ref = LOGITS, REF_LOGITS
    kl = np.asarray(jax.jit(losses.kl_divergence)(logits, ref))
    kl_retain = jax.jit(obj.kl_retain)
    np.testing.assert_allclose(kl_retain(logits, ref), kl.mean(), rtol=1e-6)
    np.testing.assert_allclose(kl_retain(logits, ref, VALID), kl[VALID].mean(), rtol=1e-6)


def test_nothing_valid_gives_zero():
    nothing, nan = jnp.zeros((B, R), bool), jnp.full((B, R), jnp.nan)

    of_logits = [
        lambda x: obj.wga(nan + x[..., 0], nothing),
        lambda x: obj.satimp(nan + x[..., 0], nothing),
        lambda x: obj.kl_retain(x, x, nothing),
        lambda x: obj.undial(x, x, LABELS[0], nothing, beta=10.0),
        lambda x: obj.ce_u(x, LABELS[0], nothing),
        lambda x: obj.ce_u(x[:, :1], LABELS[0, :, :1], ~nothing[:, :1]),  # only first tokens
        lambda x: obj.pdu_forget(x, nothing),
        lambda x: obj.rmu(x, CONTROL, nothing),
        lambda x: obj.rmu_retain(x, x, nothing),
    ]
    found = jax.jit(lambda x: [jax.value_and_grad(loss)(x) for loss in of_logits])(LOGITS)
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


def test_weighted_ascents_contain_each_other():
    token_nll = np.asarray(jax.jit(losses.cross_entropy)(LOGITS, LABELS[0]))
    wga, satimp = jax.jit(obj.wga), jax.jit(obj.satimp)
    ascent = jax.jit(obj.ascent)((token_nll * VALID).sum(1), LENGTHS)
    np.testing.assert_allclose(wga(token_nll, VALID, beta=0.0), ascent, rtol=1e-6)
    sure = satimp(token_nll, VALID, beta1=2.0, beta2=0.0)
    np.testing.assert_allclose(sure, wga(token_nll, VALID, beta=2.0), rtol=1e-6)
    # Cross-entropies a rounding error below zero have a weight all the same.
    assert satimp(np.full((1, 1), -1e-7, np.float32), np.ones((1, 1), bool), beta2=0.5) == 0


def test_undial_lowers_the_label_and_nothing_else():
    logits = LOGITS
    undial = jax.jit(jax.grad(obj.undial))
    still = undial(logits, logits, LABELS[0], VALID, beta=0.0)
    np.testing.assert_allclose(still, 0, atol=1e-7)
    grad = np.asarray(undial(logits, logits, LABELS[0], VALID, beta=10.0))
    assert not grad[~VALID].any()
    is_label = np.arange(V) == LABELS[0][..., None]
    assert (grad[VALID][is_label[VALID]] > 0).all()  # descent lowers it
    assert (grad[VALID][~is_label[VALID]] < 0).all()
    everywhere = undial(logits, logits, np.full((B, R), -100), beta=10.0)
    np.testing.assert_allclose(everywhere, 0, atol=1e-7)


def test_ce_u_ignores_the_first_token_and_rests_where_the_label_is_gone():
    logits = LOGITS
    ce_u = jax.jit(jax.grad(obj.ce_u))
    grad = ce_u(logits, LABELS[0], VALID)
    counted = VALID & (np.arange(R) > 0)
    np.testing.assert_array_equal(np.abs(grad).max(-1) > 0, counted)
    p = np.asarray(jax.jit(jax.nn.softmax)(logits))
    of_label = np.take_along_axis(p, LABELS[0][..., None], -1)
    is_label = np.arange(V) == LABELS[0][..., None]
    target = np.where(is_label, 0, p / (1 - of_label))
    wanted = np.where(counted[..., None], p - target, 0) / counted.sum()
    np.testing.assert_allclose(grad, wanted, atol=1e-6)
    gone = np.where(is_label, np.float32(-1e4), logits)
    np.testing.assert_allclose(ce_u(gone, LABELS[0], VALID), 0, atol=1e-7)


def test_without_first_follows_the_mask():
    valid = jnp.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    wanted = [[0, 0, 1, 0, 1], [0] * 5, [0] * 5]
    np.testing.assert_array_equal(obj.without_first(valid), np.array(wanted, bool))
    np.testing.assert_array_equal(obj.without_first(valid, 0), valid)


def test_pdu():
    assert obj.pdu_forget(jnp.full((2, 3, V), 5.0)) == 0
    logits = LOGITS
    gap = np.square(logits.max(-1) - logits.mean(-1))
    np.testing.assert_allclose(obj.pdu_forget(logits), gap.mean(), rtol=1e-6)
    np.testing.assert_allclose(obj.pdu_forget(logits, VALID), gap[VALID].mean(), rtol=1e-6)
    np.testing.assert_allclose(obj.pdu_dual(1.0, 0.5, 0.2, 2.0), 1.6, rtol=1e-6)
    assert obj.pdu_dual(1.0, 0.0, 0.9, 2.0) == 0


def test_control_vector():
    key = jax.random.key(1)
    control = obj.control_vector(key, 64, 6.5)
    assert control.shape == (64,) and (control >= 0).all()  # uniform, so not centred at 0
    np.testing.assert_allclose(jnp.linalg.norm(control), 6.5, rtol=1e-6)
    np.testing.assert_array_equal(control, obj.control_vector(key, 64, 6.5))
    chex.assert_trees_all_close(obj.control_vector(key, 64, 20.0), control * 20 / 6.5, rtol=1e-6)


def test_rmu_has_two_reductions():
    hidden = LOGITS
    error = np.square(hidden - CONTROL).mean(-1)
    np.testing.assert_allclose(obj.rmu(hidden, CONTROL), error.mean(), rtol=1e-6)
    filled = [error[i, : LENGTHS[i]].mean() for i in range(B) if LENGTHS[i]]
    np.testing.assert_allclose(obj.rmu(hidden, CONTROL, VALID), np.mean(filled), rtol=1e-6)
    assert obj.rmu(jnp.broadcast_to(CONTROL, hidden.shape), CONTROL) == 0
    for mask in (None, VALID):
        assert obj.rmu_retain(hidden, hidden, mask) == 0


@pytest.mark.parametrize("loss", ["kl_retain", "undial", "ce_u", "pdu_forget"])
def test_logits_that_do_not_count_may_be_anything(loss):
    """NaN at masked positions reaches neither the value nor the gradient."""
    logits, other = np.random.default_rng(0).normal(size=(2, 2, 4, 5)).astype(np.float32)
    labels, mask = np.ones((2, 4), int), np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    calls = {
        "kl_retain": lambda x: obj.kl_retain(x, other, mask),
        "undial": lambda x: obj.undial(x, other, labels, mask, beta=2.0),
        "ce_u": lambda x: obj.ce_u(x, labels, mask),
        "pdu_forget": lambda x: obj.pdu_forget(x, mask),
    }
    value_and_grad = jax.jit(jax.value_and_grad(calls[loss]))
    want = value_and_grad(logits)
    got = value_and_grad(np.where(mask[..., None], logits, np.float32(np.nan)))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_kl_of_words_that_both_rule_out():
    logits = np.random.default_rng(0).normal(size=(1, 2, 5)).astype(np.float32)
    logits[..., 3] = -np.inf
    value, gradient = jax.jit(jax.value_and_grad(lambda x: obj.kl_retain(2 * x, logits)))(logits)
    assert np.isfinite(value) and value > 0 and np.isfinite(gradient).all()
