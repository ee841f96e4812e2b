"""Losses and gradients of micro-batches sum to those of the whole batch."""

import chex
import jax
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxunlearn.unlearn import objectives as obj
from tests.unlearn.toy_model import CONTROL, LENGTHS, PARAMS, VALID, B, R, V, batch_of, measured


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
    "later": int(obj.without_first(VALID).sum()),
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


def test_extreme_logits_are_finite():
    batches = tuple(batch_of(side) | {"ref": 1e4 * batch_of(side)["ref"]} for side in (0, 1))
    chex.assert_tree_all_finite(of_whole_batch(PARAMS * 1e4, batches))
