"""What the losses of language-model unlearning promise; PyTorch's values are in tests/parity."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.core import losses
from jaxunlearn.unlearn import objectives as obj
from tests.unlearn.toy_model import (
    CONTROL,
    LABELS,
    LOGITS,
    PARAMS,
    REF_LOGITS,
    VALID,
    B,
    R,
    batch_of,
    measured,
)

value_and_grad_of_npo = jax.jit(jax.value_and_grad(obj.npo))


def sequences(seed, n=6, scale=30.0):
    """Random summed NLLs of a model and its reference, and lengths."""
    rng = np.random.default_rng(seed)
    nll, ref_nll = rng.uniform(0, scale, (2, n)).astype(np.float32)
    return jnp.asarray(nll), jnp.asarray(ref_nll), jnp.asarray(rng.integers(1, 9, n))


def test_averaging_micro_batches_would_change_the_token_mean():
    nll, lengths = np.asarray(sequences(0, 4)[0]), np.array([1, 1, 8, 8])
    descent = jax.jit(obj.descent)
    halves = [descent(nll[i : i + 2], lengths[i : i + 2]) for i in (0, 2)]
    assert abs(np.mean(halves) - descent(nll, lengths)) > 0.5


@given(st.integers(0, 1000), st.floats(0.01, 3.0))
def test_npo_begins_as_ascent_on_sequence_sums(seed, beta):
    nll, ref_nll, _ = sequences(seed)
    value, grad = value_and_grad_of_npo(nll, nll, beta=beta)
    np.testing.assert_allclose(value, 2 / beta * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad, -np.full(6, 1 / 6), rtol=1e-6)
    change = np.float64(nll) - np.float64(ref_nll)
    weight = 2 / (1 + np.exp(beta * change))
    _, grad = value_and_grad_of_npo(nll, ref_nll, beta=beta)
    np.testing.assert_allclose(grad, -weight / 6, rtol=1e-4, atol=1e-8)


def test_npo_at_the_reference_is_ascent_of_a_model():
    batch = batch_of(0) | {"ref": LOGITS, "valid": jnp.ones((B, R), bool)}

    @jax.jit
    @jax.grad
    def npo(params):
        model = measured(params, batch)
        return obj.npo(model.nll, model.ref_nll, beta=0.7)

    @jax.jit
    @jax.grad
    def sequence_ascent(params):
        return -measured(params, batch).nll.mean()

    chex.assert_trees_all_close(npo(PARAMS), sequence_ascent(PARAMS), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 1000))
def test_small_beta_is_ascent_on_sequence_sums(seed):
    nll, ref_nll, _ = sequences(seed)
    grad = value_and_grad_of_npo(nll, ref_nll, beta=1e-6)[1]
    np.testing.assert_allclose(grad, -np.full(6, 1 / 6), rtol=1e-4)


@pytest.mark.parametrize(("beta", "weight"), [(1e-3, 0.9985), (0.1, 0.8511), (0.5, 0.3648)])
def test_npo_weight_at_an_increase_of_three(beta, weight):
    _, grad = value_and_grad_of_npo(jnp.full(6, 5.0), jnp.full(6, 2.0), beta=beta)
    np.testing.assert_allclose(6 * grad, np.full(6, -weight), atol=1e-4)


@jax.jit
def dpo_and_npo(nll, ref_nll, beta):
    return (
        obj.dpo(nll, ref_nll, nll, ref_nll, beta=beta),
        obj.dpo(nll, nll, nll, ref_nll, beta=beta),
        obj.npo(nll, ref_nll, beta=beta),
        jax.grad(obj.dpo, argnums=(0, 2))(nll, ref_nll, ref_nll, nll, beta=beta),
    )


@given(st.integers(0, 1000), st.floats(0.01, 3.0))
def test_dpo(seed, beta):
    nll, ref_nll, _ = sequences(seed)
    even, of_steady, npo, (preferred, forget) = dpo_and_npo(nll, ref_nll, beta)
    np.testing.assert_allclose(even, 2 / beta * np.log(2), rtol=1e-6)
    # With a preferred answer that does not change it is NPO.
    np.testing.assert_allclose(of_steady, npo, rtol=1e-6)
    assert (preferred >= 0).all() and (forget <= 0).all()


@jax.jit
def simnpo_forms(nll, lengths, beta, gamma):
    return {
        "plain": obj.simnpo(nll, lengths, beta=beta, gamma=gamma),
        "twice": obj.simnpo(2 * nll, 2 * lengths, beta=beta, gamma=gamma),
        "outside": obj.simnpo(nll, lengths, beta=beta, gamma=beta * gamma, gamma_inside=False),
        "sum": obj.simnpo(nll, lengths, beta=beta, length_normalized=False),
        "npo": obj.npo(nll, jnp.zeros(6), beta=beta),
        "batch of one": obj.simnpo_batch(nll[:1], lengths[:1], beta=beta),
        "one": obj.simnpo(nll[:1], lengths[:1], beta=beta),
    }


@given(st.integers(0, 1000), st.floats(0.05, 3.0), st.floats(-1.0, 1.0))
def test_simnpo_forms(seed, beta, gamma):
    nll, _, lengths = sequences(seed)
    forms = simnpo_forms(nll, lengths, beta, gamma)
    np.testing.assert_allclose(forms["twice"], forms["plain"], rtol=1e-6)
    np.testing.assert_allclose(forms["outside"], forms["plain"], rtol=1e-5)
    np.testing.assert_allclose(forms["sum"], forms["npo"], rtol=1e-6)
    np.testing.assert_allclose(forms["batch of one"], forms["one"], rtol=1e-6)


def test_simnpo_of_long_sums_hardly_forgets():
    settings = {"beta": 1.0, "length_normalized": False}
    grad = jax.grad(obj.simnpo)(jnp.array([25.0]), jnp.array([50]), **settings)
    np.testing.assert_allclose(-grad, [2 / (1 + np.exp(25.0))], rtol=1e-5)
    for beta, weight in ((1.0, 0.5), (2.5, 1.25)):  # mean NLL 0.5
        grad = jax.grad(obj.simnpo)(jnp.array([25.0]), jnp.array([50]), beta=beta)
        np.testing.assert_allclose(-50 * grad, [2 / (1 + np.exp(weight))], rtol=1e-5)


def test_batch_losses_are_those_of_the_token_mean():
    nll, ref_nll, lengths = sequences(3)
    mean, ref_mean = nll.sum() / lengths.sum(), ref_nll.sum() / lengths.sum()
    got = obj.npo_batch(nll, ref_nll, lengths, beta=0.5)
    np.testing.assert_allclose(got, obj.npo(mean[None], ref_mean[None], beta=0.5), rtol=1e-6)
    np.testing.assert_allclose(
        obj.simnpo_batch(nll, lengths, beta=0.5),
        obj.npo(mean[None], jnp.zeros(1), beta=0.5),
        rtol=1e-6,
    )


def losses_of_sequences(nll, ref_nll, lengths, counted, beta):
    """Every loss of NLLs, by name."""
    return {
        "descent": obj.descent(nll, lengths),
        "ascent": obj.ascent(nll, lengths),
        "grad_diff": obj.grad_diff(nll, lengths, nll * 0.5, lengths),
        "idk": obj.idk(nll, lengths, nll * 0.5, lengths),
        "npo": obj.npo(nll, ref_nll, beta=beta, counted=counted),
        "simnpo": obj.simnpo(nll, lengths, beta=beta, gamma=0.1),
        "simnpo outside": obj.simnpo(nll, lengths, beta=beta, gamma=0.1, gamma_inside=False),
        "simnpo sum": obj.simnpo(nll, lengths, beta=beta, length_normalized=False),
        "npo_batch": obj.npo_batch(nll, ref_nll, lengths, beta=beta),
        "simnpo_batch": obj.simnpo_batch(nll, lengths, beta=beta),
        "dpo": obj.dpo(nll * 0.5, ref_nll, nll, ref_nll, beta=beta, counted=counted),
        "kto_sigmoid": obj.kto_sigmoid(
            nll,
            ref_nll,
            obj.kto_baseline(nll * 0.5, ref_nll, counted=counted),
            beta=beta,
            counted=counted,
        ),
        "kto_logsigmoid": obj.kto_logsigmoid(nll, ref_nll, 0.2, beta=beta, counted=counted),
    }


values_and_gradients = jax.jit(
    lambda *args: (losses_of_sequences(*args), jax.jacrev(losses_of_sequences)(*args))
)


@pytest.mark.parametrize("filler", [0.0, 12.0, np.nan, np.inf])
def test_empty_responses_add_nothing(filler):
    nll, ref_nll, lengths = sequences(1)
    counted = jnp.ones(6, bool)
    values, grads = values_and_gradients(nll, ref_nll, lengths, counted, 0.5)
    more = jnp.full(2, filler)
    longer = (np.r_[nll, more], np.r_[ref_nll, more], np.r_[lengths, 0, 0])
    got, got_grads = values_and_gradients(*longer, longer[2] > 0, 0.5)
    chex.assert_trees_all_close(got, values, rtol=1e-6)
    chex.assert_trees_all_close(
        got_grads, {name: np.r_[g, 0, 0] for name, g in grads.items()}, rtol=1e-5, atol=1e-8
    )
    none = (more, more, jnp.zeros(2, int), jnp.zeros(2, bool), 0.5)
    chex.assert_trees_all_equal(
        values_and_gradients(*none), jax.tree.map(jnp.zeros_like, values_and_gradients(*none))
    )


@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_extreme_values_are_finite(beta):
    change = np.array([-1e4, -90.0, -17.0, 0.0, 17.0, 90.0, 1e4], np.float32)
    ref_nll = jnp.full(7, 1e4)
    nll = ref_nll + change / beta
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(lambda n, r: obj.npo(n, r, beta=beta))))(
        nll[:, None], ref_nll[:, None]
    )
    x = beta * (np.float64(nll) - 1e4)
    np.testing.assert_allclose(value, 2 / beta * np.logaddexp(0, -x), rtol=1e-5, atol=1e-30)
    weight = -2 * np.exp(-np.logaddexp(0, x))
    np.testing.assert_allclose(grad[:, 0], weight, rtol=1e-5, atol=1e-30)
    lengths, counted = jnp.full(7, 3), jnp.ones(7, bool)
    chex.assert_tree_all_finite(values_and_gradients(nll, ref_nll, lengths, counted, beta))


def test_beta_can_be_swept():
    nll, ref_nll, lengths = sequences(5)
    counted, betas = jnp.ones(6, bool), jnp.array([0.05, 0.5, 4.0])
    got = jax.vmap(values_and_gradients, in_axes=(None, None, None, None, 0))(
        nll, ref_nll, lengths, counted, betas
    )
    for i, beta in enumerate(betas):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], got),
            values_and_gradients(nll, ref_nll, lengths, counted, beta),
            rtol=1e-5,
            atol=1e-7,
        )


def test_references_and_weights_are_constants():
    nll, ref_nll, lengths = sequences(2)
    logits, ref = LOGITS, REF_LOGITS
    of_constants = (
        (lambda r: obj.npo(nll, r, beta=0.5), ref_nll),
        (lambda r: obj.npo_batch(nll, r, lengths, beta=0.5), ref_nll),
        (lambda r: obj.dpo(nll, r, nll, r, beta=0.5), ref_nll),
        (lambda r: obj.kto_sigmoid(nll, r, 0.0, beta=0.5), ref_nll),
        (lambda b: obj.kto_sigmoid(nll, nll, obj.kto_baseline(b, nll), beta=0.5), ref_nll),
        (lambda r: obj.kl_retain(logits, r), ref),
        (lambda r: obj.undial(logits, r, LABELS[0], beta=1.0), ref),
        (lambda r: obj.rmu_retain(logits, r), ref),
        (lambda c: obj.rmu(logits, c), CONTROL),
        (lambda r: obj.muse_legacy_npo(logits, r, beta=0.1), ref),
    )
    slopes = jax.jit(lambda: [jax.grad(loss)(argument) for loss, argument in of_constants])()
    assert not any(slope.any() for slope in slopes)
    token_nll = np.asarray(jax.jit(losses.cross_entropy)(logits, LABELS[0]))
    p = np.exp(-np.float64(token_nll))
    grads = jax.jit(lambda x: [jax.grad(loss)(x, VALID) for loss in (obj.wga, obj.satimp)])
    for grad, weight in zip(grads(token_nll), (p, p**5 * (1 - p)), strict=True):
        wanted = -weight * VALID / VALID.sum()
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-9)


def test_kto_is_npo_without_a_baseline():
    nll, ref_nll, _ = sequences(7)
    npo = obj.npo(nll, ref_nll, beta=0.4)
    np.testing.assert_allclose(obj.kto_logsigmoid(nll, ref_nll, 0.0, beta=0.4), 1 + npo, rtol=1e-6)
    baseline = obj.kto_baseline(nll, ref_nll)
    np.testing.assert_allclose(baseline, (ref_nll - nll).mean(), rtol=1e-5)
    alone = obj.kto_baseline(nll, ref_nll, counted=jnp.arange(6) < 1)
    np.testing.assert_allclose(alone, ref_nll[0] - nll[0], rtol=1e-5)


def test_task_vectors_are_undone():
    params, forgetful, other = (
        {"a": {"b": jax.random.normal(jax.random.key(seed), (3, 2))}, "c": jnp.ones(2) * seed}
        for seed in range(3)
    )
    back = obj.task_vector(forgetful, params, forgetful, 1.0)
    chex.assert_trees_all_close(back, params, atol=1e-6)
    moved = obj.task_vector(forgetful, params, other, 5.0)
    there = obj.task_vector(forgetful, params, moved, -5.0)
    chex.assert_trees_all_close(there, other, atol=1e-5)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    moved = obj.task_vector(half, half, half, jnp.array(5.0))
    chex.assert_trees_all_equal(moved, half)
    with pytest.raises(ValueError, match="pretrained_params is"):
        obj.task_vector(params, {"c": params["c"]}, params, 1.0)
    with pytest.raises(ValueError, match=r"fine_tuned_params has shape \(3,\)"):
        obj.task_vector(params | {"c": jnp.ones(3)}, params, params, 1.0)


def test_sums_are_in_float32():
    half = jax.ShapeDtypeStruct(LOGITS.shape, jnp.bfloat16)
    nll = jax.ShapeDtypeStruct((6,), jnp.bfloat16)

    def values(half, nll):
        return (
            obj.descent(nll, jnp.ones(6, int)),
            obj.npo(nll, nll, beta=0.5),
            obj.simnpo(nll, jnp.ones(6, int), beta=0.5),
            obj.kl_retain(half, half),
            obj.undial(half, half, LABELS[0], beta=10.0),
            obj.rmu(half, CONTROL, VALID),
            obj.muse_legacy_simnpo(half, beta=0.1),
        )

    for value in jax.eval_shape(values, half, nll):
        assert value.dtype == jnp.float32 and value.shape == ()


THREE, FOUR = np.ones(3, np.float32), np.ones(4, np.float32)
CUBE = np.ones((2, 3, 5), np.float32)
SQUARE = np.ones((2, 3), int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: obj.descent(THREE, FOUR), r"descent: lengths has shape \(4,\), nll \(3,\)"),
        (lambda: obj.ascent(THREE, FOUR), "ascent: lengths"),
        (lambda: obj.ascent(THREE[0], THREE[0]), "must have 1 axes"),
        (lambda: obj.grad_diff(FOUR, FOUR, THREE, FOUR), "grad_diff: lengths_retain"),
        (lambda: obj.idk(THREE, FOUR, THREE, THREE), "idk: lengths_idk"),
        (lambda: obj.npo(THREE, FOUR, beta=1.0), "npo: ref_nll"),
        (lambda: obj.npo(THREE, THREE, beta=1.0, counted=FOUR > 0), "npo: counted"),
        (lambda: obj.npo(THREE, THREE, beta=0), "npo: beta is 0; it must be > 0"),
        (lambda: obj.npo(THREE, THREE, beta=np.float32("nan")), "beta is nan"),
        (lambda: obj.simnpo(THREE, THREE, beta=-1.0), "simnpo: beta is -1.0"),
        (lambda: obj.simnpo(THREE, FOUR, beta=1.0), "simnpo: lengths"),
        (lambda: obj.npo_batch(THREE, THREE, FOUR, beta=1.0), "npo_batch: lengths"),
        (lambda: obj.simnpo_batch(THREE, THREE, beta=0.0), "simnpo_batch: beta"),
        (lambda: obj.dpo(THREE, THREE, FOUR, THREE, beta=1.0), "dpo: nll_forget"),
        (lambda: obj.dpo(THREE, THREE, THREE, THREE, beta=0.0), "dpo: beta"),
        (lambda: obj.kto_sigmoid(THREE, THREE, 0.0, beta=0.0), "kto_sigmoid: beta"),
        (lambda: obj.kto_logsigmoid(THREE, FOUR, 0.0, beta=1.0), "kto_logsigmoid: ref_nll"),
        (lambda: obj.kto_baseline(THREE, FOUR), "kto_baseline: ref_nll_idk"),
        (lambda: obj.kl_retain(CUBE, CUBE[:1]), "kl_retain: ref_logits"),
        (lambda: obj.kl_retain(CUBE, CUBE, THREE), "mask needs all axes of logits but the last"),
        (lambda: obj.wga(SQUARE, THREE), "wga: valid"),
        (lambda: obj.satimp(THREE, THREE), "satimp: token_nll has shape"),
        (lambda: obj.undial(CUBE, CUBE, THREE, beta=1.0), "undial: labels has shape"),
        (lambda: obj.undial(CUBE, CUBE, CUBE[..., 0], beta=1.0), "undial: labels have dtype"),
        (lambda: obj.undial(CUBE, CUBE, SQUARE, THREE, beta=1.0), "undial: valid"),
        (lambda: obj.ce_u(CUBE[..., :1], SQUARE, SQUARE), "V >= 2"),
        (lambda: obj.ce_u(CUBE[:1], SQUARE, SQUARE), "ce_u: labels"),
        (lambda: obj.pdu_forget(CUBE[0]), "must have 3 axes"),
        (lambda: obj.rmu(CUBE, THREE), "rmu: control has shape"),
        (lambda: obj.rmu(CUBE, np.ones(5), THREE), "rmu: mask"),
        (lambda: obj.rmu_retain(CUBE, CUBE[:1]), "rmu_retain: frozen_hidden"),
        (lambda: obj.control_vector(jax.random.key(0), 0, 1.0), "width is 0"),
        (lambda: obj.muse_legacy_npo(CUBE, CUBE, beta=0.0), "muse_legacy_npo: beta"),
        (lambda: obj.muse_legacy_simnpo(SQUARE, beta=1.0), "must have 3 axes"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
