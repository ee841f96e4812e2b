"""What the losses of language-model unlearning promise; PyTorch's values are in tests/parity."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxunlearn.core import losses
from jaxunlearn.unlearn import objectives as obj

B, R, V, D = 8, 5, 7, 4
LENGTHS = np.array([5, 0, 3, 1, 4, 0, 2, 5])  # two responses are empty
VALID = np.arange(R) < LENGTHS[:, None]
value_and_grad_of_npo = jax.jit(jax.value_and_grad(obj.npo))
FEATURES, REF_PARAMS, PARAMS = (
    jax.random.normal(jax.random.key(seed), shape)
    for seed, shape in enumerate([(2, B, R, D), (D, V), (D, V)])
)
LABELS = jax.random.randint(jax.random.key(3), (2, B, R), 0, V)
CONTROL = obj.control_vector(jax.random.key(4), V, 3.0)


def sequences(seed, n=6, scale=30.0):
    """Random summed NLLs of a model and its reference, and lengths."""
    rng = np.random.default_rng(seed)
    nll, ref_nll = rng.uniform(0, scale, (2, n)).astype(np.float32)
    return jnp.asarray(nll), jnp.asarray(ref_nll), jnp.asarray(rng.integers(1, 9, n))


def batch_of(side):
    """A batch of a toy language model whose logits are features @ params; side 0 is to forget."""
    return {
        "x": FEATURES[side],
        "y": LABELS[side],
        "valid": jnp.asarray(VALID),
        "ref": FEATURES[side] @ REF_PARAMS,
    }


class Measured(NamedTuple):
    """Of one batch; the NLLs are summed."""

    logits: jax.Array
    token_nll: jax.Array
    nll: jax.Array
    ref_nll: jax.Array
    lengths: jax.Array


def measured(params, batch):
    logits = batch["x"] @ params
    token = losses.cross_entropy(logits, batch["y"])
    ref_token = losses.cross_entropy(batch["ref"], batch["y"])
    total, ref_total = ((t * batch["valid"]).sum(1) for t in (token, ref_token))
    return Measured(logits, token, total, ref_total, batch["valid"].sum(1))


def loss_of(build):
    """`loss(params, (forget batch, retain batch), counts)` of what was measured on both."""

    def loss(params, batches, counts):
        forget, retain = batches
        return build(forget, measured(params, forget), measured(params, retain), counts)

    return loss


COUNTS = {
    "tokens": int(LENGTHS.sum()),
    "filled": int((LENGTHS > 0).sum()),
    "positions": B * R,
    "entries": B * R * V,
    "later": int(obj.without_first(jnp.asarray(VALID)).sum()),
}
NONE = dict.fromkeys(COUNTS)
# All losses that are sums over a count; b is the forget batch, f and r what was measured.
SUMS = {
    "descent": loss_of(lambda b, f, r, n: obj.descent(f.nll, f.lengths, denominator=n["tokens"])),
    "ascent": loss_of(lambda b, f, r, n: obj.ascent(f.nll, f.lengths, denominator=n["tokens"])),
    "grad_diff": loss_of(
        lambda b, f, r, n: obj.grad_diff(
            f.nll,
            f.lengths,
            r.nll,
            r.lengths,
            gamma=0.3,
            alpha=2.0,
            denominators=(n["tokens"], n["tokens"]),
        )
    ),
    "idk": loss_of(
        lambda b, f, r, n: obj.idk(
            f.nll, f.lengths, r.nll, r.lengths, denominator=n["tokens"] and 2 * n["tokens"]
        )
    ),
    "npo": loss_of(
        lambda b, f, r, n: obj.npo(
            f.nll, f.ref_nll, beta=0.5, counted=f.lengths > 0, denominator=n["filled"]
        )
    ),
    "simnpo": loss_of(
        lambda b, f, r, n: obj.simnpo(
            f.nll, f.lengths, beta=2.5, gamma=0.2, denominator=n["filled"]
        )
    ),
    "simnpo sum": loss_of(
        lambda b, f, r, n: obj.simnpo(
            f.nll, f.lengths, beta=0.1, length_normalized=False, denominator=n["filled"]
        )
    ),
    "dpo": loss_of(
        lambda b, f, r, n: obj.dpo(
            r.nll,
            r.ref_nll,
            f.nll,
            f.ref_nll,
            beta=0.1,
            counted=f.lengths > 0,
            denominator=n["filled"],
        )
    ),
    "kto_sigmoid": loss_of(
        lambda b, f, r, n: obj.kto_sigmoid(
            f.nll, f.ref_nll, 0.3, beta=0.5, counted=f.lengths > 0, denominator=n["filled"]
        )
    ),
    "kto_logsigmoid": loss_of(
        lambda b, f, r, n: obj.kto_logsigmoid(
            f.nll, f.ref_nll, 0.3, beta=0.5, counted=f.lengths > 0, denominator=n["filled"]
        )
    ),
    "kl_retain": loss_of(
        lambda b, f, r, n: obj.kl_retain(f.logits, b["ref"], denominator=n["positions"])
    ),
    "kl_retain masked": loss_of(
        lambda b, f, r, n: obj.kl_retain(f.logits, b["ref"], b["valid"], denominator=n["tokens"])
    ),
    "wga": loss_of(lambda b, f, r, n: obj.wga(f.token_nll, b["valid"], denominator=n["tokens"])),
    "satimp": loss_of(
        lambda b, f, r, n: obj.satimp(f.token_nll, b["valid"], denominator=n["tokens"])
    ),
    "undial": loss_of(
        lambda b, f, r, n: obj.undial(
            f.logits, b["ref"], b["y"], b["valid"], beta=10.0, denominator=n["tokens"]
        )
    ),
    "ce_u": loss_of(
        lambda b, f, r, n: obj.ce_u(f.logits, b["y"], b["valid"], denominator=n["later"])
    ),
    "pdu_forget": loss_of(lambda b, f, r, n: obj.pdu_forget(f.logits, denominator=n["positions"])),
    "rmu": loss_of(lambda b, f, r, n: obj.rmu(f.logits, CONTROL, denominator=n["positions"])),
    "rmu masked": loss_of(
        lambda b, f, r, n: obj.rmu(f.logits, CONTROL, b["valid"], denominator=n["filled"])
    ),
    "rmu_retain": loss_of(
        lambda b, f, r, n: obj.rmu_retain(f.logits, b["ref"], denominator=n["positions"])
    ),
    "rmu_retain masked": loss_of(
        lambda b, f, r, n: obj.rmu_retain(f.logits, b["ref"], b["valid"], denominator=n["filled"])
    ),
    "muse_legacy_npo": loss_of(
        lambda b, f, r, n: obj.muse_legacy_npo(
            f.logits, b["ref"], beta=0.1, denominator=n["entries"]
        )
    ),
    "muse_legacy_simnpo": loss_of(
        lambda b, f, r, n: obj.muse_legacy_simnpo(f.logits, beta=0.7, denominator=n["entries"])
    ),
}


@jax.jit
def of_whole_batch(params, batches):
    """{name: (value, gradient)} of all losses."""
    return {name: jax.value_and_grad(loss)(params, batches, NONE) for name, loss in SUMS.items()}


@jax.jit
def of_micro_batches(params, split):
    return {
        name: obj.accumulate(lambda p, b, loss=loss: loss(p, b, COUNTS), params, split)
        for name, loss in SUMS.items()
    }


@example([1, 5, 0, 2, 3, 4, 6, 7])  # the first micro-batch has only empty responses
@given(st.permutations(range(B)))
@settings(max_examples=8)
def test_a_split_into_micro_batches_changes_nothing(order):
    whole = (batch_of(0), batch_of(1))
    split = jax.tree.map(lambda a: a[np.array(order)].reshape(4, 2, *a.shape[1:]), whole)
    got = of_micro_batches(PARAMS, split)
    for name, (value, grad) in of_whole_batch(PARAMS, whole).items():
        size = np.abs(grad).max()
        assert np.isfinite(value) and size > 0
        np.testing.assert_allclose(got[name][0], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(got[name][1], grad, rtol=0, atol=1e-6 * size, err_msg=name)


def test_averaging_micro_batches_would_change_the_token_mean():
    nll, _, _ = sequences(0, 4)
    lengths = jnp.array([1, 1, 8, 8])
    halves = [obj.descent(nll[i : i + 2], lengths[i : i + 2]) for i in (0, 2)]
    assert abs(np.mean(halves) - obj.descent(nll, lengths)) > 0.5


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
    batch = batch_of(0) | {"ref": FEATURES[0] @ PARAMS, "valid": jnp.ones((B, R), bool)}

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


@given(st.integers(0, 1000), st.floats(0.01, 3.0))
def test_dpo(seed, beta):
    nll, ref_nll, _ = sequences(seed)
    even = obj.dpo(nll, ref_nll, nll, ref_nll, beta=beta)
    np.testing.assert_allclose(even, 2 / beta * np.log(2), rtol=1e-6)
    # With a preferred answer that does not change it is NPO.
    np.testing.assert_allclose(
        obj.dpo(nll, nll, nll, ref_nll, beta=beta), obj.npo(nll, ref_nll, beta=beta), rtol=1e-6
    )
    preferred, forget = jax.grad(obj.dpo, argnums=(0, 2))(nll, ref_nll, ref_nll, nll, beta=beta)
    assert (preferred >= 0).all() and (forget <= 0).all()


@given(st.integers(0, 1000), st.floats(0.05, 3.0), st.floats(-1.0, 1.0))
def test_simnpo_forms(seed, beta, gamma):
    nll, _, lengths = sequences(seed)
    own = obj.simnpo(nll, lengths, beta=beta, gamma=gamma)
    twice = obj.simnpo(2 * nll, 2 * lengths, beta=beta, gamma=gamma)
    np.testing.assert_allclose(twice, own, rtol=1e-6)
    outside = obj.simnpo(nll, lengths, beta=beta, gamma=beta * gamma, gamma_inside=False)
    np.testing.assert_allclose(outside, own, rtol=1e-5)
    np.testing.assert_allclose(
        obj.simnpo(nll, lengths, beta=beta, length_normalized=False),
        obj.npo(nll, jnp.zeros(6), beta=beta),
        rtol=1e-6,
    )
    alone = obj.simnpo_batch(nll[:1], lengths[:1], beta=beta)
    np.testing.assert_allclose(alone, obj.simnpo(nll[:1], lengths[:1], beta=beta), rtol=1e-6)


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
    logits, ref = FEATURES[0] @ PARAMS, FEATURES[0] @ REF_PARAMS
    kl = losses.kl_divergence(logits, ref)
    np.testing.assert_allclose(obj.kl_retain(logits, ref), kl.mean(), rtol=1e-6)
    np.testing.assert_allclose(obj.kl_retain(logits, ref, VALID), kl[VALID].mean(), rtol=1e-6)


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
    longer = (jnp.r_[nll, more], jnp.r_[ref_nll, more], jnp.r_[lengths, 0, 0])
    got, got_grads = values_and_gradients(*longer, longer[2] > 0, 0.5)
    chex.assert_trees_all_close(got, values, rtol=1e-6)
    chex.assert_trees_all_close(
        got_grads, {name: jnp.r_[g, 0, 0] for name, g in grads.items()}, rtol=1e-5, atol=1e-8
    )
    none = (more, more, jnp.zeros(2, int), jnp.zeros(2, bool), 0.5)
    chex.assert_trees_all_equal(
        values_and_gradients(*none), jax.tree.map(jnp.zeros_like, values_and_gradients(*none))
    )


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
    found = jax.jit(lambda x: [jax.value_and_grad(loss)(x) for loss in of_logits])(
        FEATURES[0] @ PARAMS
    )
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


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


def test_extreme_logits_are_finite():
    batches = tuple(batch_of(side) | {"ref": 1e4 * batch_of(side)["ref"]} for side in (0, 1))
    chex.assert_tree_all_finite(of_whole_batch(PARAMS * 1e4, batches))


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
    logits, ref = FEATURES[0] @ PARAMS, FEATURES[0] @ REF_PARAMS
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
    token_nll = losses.cross_entropy(logits, LABELS[0])
    p = np.exp(-np.float64(token_nll))
    for loss, weight in ((obj.wga, p), (obj.satimp, p**5 * (1 - p))):
        wanted = -weight * VALID / VALID.sum()
        np.testing.assert_allclose(jax.grad(loss)(token_nll, VALID), wanted, rtol=1e-4, atol=1e-9)


def test_weighted_ascents_contain_each_other():
    token_nll = losses.cross_entropy(FEATURES[0] @ PARAMS, LABELS[0])
    nll = (token_nll * VALID).sum(1)
    plain = obj.wga(token_nll, VALID, beta=0.0)
    np.testing.assert_allclose(plain, obj.ascent(nll, LENGTHS), rtol=1e-6)
    sure = obj.satimp(token_nll, VALID, beta1=2.0, beta2=0.0)
    np.testing.assert_allclose(sure, obj.wga(token_nll, VALID, beta=2.0), rtol=1e-6)
    # Cross-entropies a rounding error below zero have a weight all the same.
    assert obj.satimp(jnp.full((1, 1), -1e-7), jnp.ones((1, 1), bool), beta2=0.5) == 0


def test_undial_lowers_the_label_and_nothing_else():
    logits = FEATURES[0] @ PARAMS
    still = jax.grad(obj.undial)(logits, logits, LABELS[0], VALID, beta=0.0)
    np.testing.assert_allclose(still, 0, atol=1e-7)
    grad = jax.grad(obj.undial)(logits, logits, LABELS[0], VALID, beta=10.0)
    assert not grad[~VALID].any()
    is_label = np.arange(V) == LABELS[0][..., None]
    assert (grad[VALID][is_label[VALID]] > 0).all()  # descent lowers it
    assert (grad[VALID][~is_label[VALID]] < 0).all()
    everywhere = jax.grad(obj.undial)(logits, logits, jnp.full((B, R), -100), beta=10.0)
    np.testing.assert_allclose(everywhere, 0, atol=1e-7)


def test_ce_u_ignores_the_first_token_and_rests_where_the_label_is_gone():
    logits = FEATURES[0] @ PARAMS
    grad = jax.grad(obj.ce_u)(logits, LABELS[0], VALID)
    counted = VALID & (np.arange(R) > 0)
    np.testing.assert_array_equal(np.abs(grad).max(-1) > 0, counted)
    p = jax.nn.softmax(logits)
    own = jnp.take_along_axis(p, LABELS[0][..., None], -1)
    is_label = np.arange(V) == LABELS[0][..., None]
    target = np.where(is_label, 0, p / (1 - own))
    wanted = np.where(counted[..., None], p - target, 0) / counted.sum()
    np.testing.assert_allclose(grad, wanted, atol=1e-6)
    gone = jnp.where(is_label, -1e4, logits)
    np.testing.assert_allclose(jax.grad(obj.ce_u)(gone, LABELS[0], VALID), 0, atol=1e-7)


def test_without_first_follows_the_mask():
    valid = jnp.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    wanted = [[0, 0, 1, 0, 1], [0] * 5, [0] * 5]
    np.testing.assert_array_equal(obj.without_first(valid), np.array(wanted, bool))
    np.testing.assert_array_equal(obj.without_first(valid, 0), valid)


def test_pdu():
    assert obj.pdu_forget(jnp.full((2, 3, V), 5.0)) == 0
    logits = FEATURES[0] @ PARAMS
    gap = np.square(logits.max(-1) - logits.mean(-1))
    np.testing.assert_allclose(obj.pdu_forget(logits), gap.mean(), rtol=1e-6)
    np.testing.assert_allclose(obj.pdu_forget(logits, VALID), gap[VALID].mean(), rtol=1e-6)
    np.testing.assert_allclose(obj.pdu_dual(1.0, 0.5, 0.2, 2.0), 1.6, rtol=1e-6)
    assert obj.pdu_dual(1.0, 0.0, 0.9, 2.0) == 0


def test_kto_is_npo_without_a_baseline():
    nll, ref_nll, _ = sequences(7)
    npo = obj.npo(nll, ref_nll, beta=0.4)
    np.testing.assert_allclose(obj.kto_logsigmoid(nll, ref_nll, 0.0, beta=0.4), 1 + npo, rtol=1e-6)
    baseline = obj.kto_baseline(nll, ref_nll)
    np.testing.assert_allclose(baseline, (ref_nll - nll).mean(), rtol=1e-5)
    alone = obj.kto_baseline(nll, ref_nll, counted=jnp.arange(6) < 1)
    np.testing.assert_allclose(alone, ref_nll[0] - nll[0], rtol=1e-5)


def test_control_vector():
    key = jax.random.key(1)
    control = obj.control_vector(key, 64, 6.5)
    assert control.shape == (64,) and (control >= 0).all()  # uniform, so not centred at 0
    np.testing.assert_allclose(jnp.linalg.norm(control), 6.5, rtol=1e-6)
    np.testing.assert_array_equal(control, obj.control_vector(key, 64, 6.5))
    chex.assert_trees_all_close(obj.control_vector(key, 64, 20.0), control * 20 / 6.5, rtol=1e-6)


def test_rmu_has_two_reductions():
    hidden = FEATURES[0] @ PARAMS
    error = np.square(hidden - CONTROL).mean(-1)
    np.testing.assert_allclose(obj.rmu(hidden, CONTROL), error.mean(), rtol=1e-6)
    filled = [error[i, : LENGTHS[i]].mean() for i in range(B) if LENGTHS[i]]
    np.testing.assert_allclose(obj.rmu(hidden, CONTROL, VALID), np.mean(filled), rtol=1e-6)
    assert obj.rmu(jnp.broadcast_to(CONTROL, hidden.shape), CONTROL) == 0
    for mask in (None, VALID):
        assert obj.rmu_retain(hidden, hidden, mask) == 0


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
    half = (FEATURES[0] @ PARAMS).astype(jnp.bfloat16)
    nll = jnp.ones(6, jnp.bfloat16)
    for value in (
        obj.descent(nll, jnp.ones(6, int)),
        obj.npo(nll, nll, beta=0.5),
        obj.simnpo(nll, jnp.ones(6, int), beta=0.5),
        obj.kl_retain(half, half),
        obj.undial(half, half, LABELS[0], beta=10.0),
        obj.rmu(half, CONTROL, VALID),
        obj.muse_legacy_simnpo(half, beta=0.1),
    ):
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


@pytest.mark.parametrize("loss", ["kl_retain", "undial", "ce_u", "pdu_forget"])
def test_logits_that_do_not_count_may_be_anything(loss):
    """NaN at masked positions reaches neither the value nor the gradient."""
    logits, other = jax.random.normal(jax.random.key(0), (2, 2, 4, 5))
    labels, mask = jnp.ones((2, 4), int), jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    calls = {
        "kl_retain": lambda x: obj.kl_retain(x, other, mask),
        "undial": lambda x: obj.undial(x, other, labels, mask, beta=2.0),
        "ce_u": lambda x: obj.ce_u(x, labels, mask),
        "pdu_forget": lambda x: obj.pdu_forget(x, mask),
    }
    want = jax.value_and_grad(calls[loss])(logits)
    broken = jnp.where(mask[..., None], logits, jnp.nan)
    got = jax.value_and_grad(calls[loss])(broken)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_kl_of_words_that_both_rule_out():
    logits = jax.random.normal(jax.random.key(0), (1, 2, 5)).at[..., 3].set(-jnp.inf)
    value, gradient = jax.value_and_grad(lambda x: obj.kl_retain(2 * x, logits))(logits)
    assert np.isfinite(value) and value > 0 and np.isfinite(gradient).all()
