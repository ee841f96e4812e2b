"""Losses of language-model unlearning: arrays in, a scalar out, every tunable an argument.

Each loss exists here once, with the reduction of its source stated. What they have in common:

- NLL means -sum log p over a response's tokens: one number per sequence, *summed*, not averaged.
- Every loss is a sum over a count, of tokens or of sequences, and takes that count as
  `denominator`; left out, it is this batch's own. Given the whole batch's count, the losses and
  gradients of its micro-batches *sum* to those of the whole, however it is split (`accumulate`).
  The losses named `_batch` are the exception: they are not sums, and a split changes them.
- An empty response (length 0, or nothing valid) adds nothing and is not counted, and a batch of
  them has loss 0 and gradient 0; its NLL may even be NaN. Losses that see no lengths count all
  sequences, unless `counted` says which (`lengths > 0`).
- References, teachers, controls and weights are constants: no gradient flows into them.
- `beta` may be traced, to sweep it by `vmap`; as a plain number it must be positive. Sums are in at
  least float32. Errors are ValueErrors about shapes, and come before anything is compiled.

Forget and retain losses add up to the published combinations: TOFU's KL = `ascent` + `kl_retain`;
grad_ascent_forgetKL = `ascent` + `kl_retain` of the forget batch; dpo_grad_diff, npo_grad_diff,
kto_logsigmoid_grad_diff = that loss + `descent`; dpo_KL, npo_KL = that loss + `kl_retain`; WMDP's
RMU = `rmu` + alpha `rmu_retain`.

Sources: TOFU (arXiv 2401.06121), NPO (2404.05868), SimNPO (2410.07163), MUSE (2407.06460), RMU
(2403.03218), the staged models of arXiv 2510.16629, and their authors' code; open-unlearning.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn._token_objectives import (
    ce_u,
    control_vector,
    kl_retain,
    mean,
    muse_legacy_npo,
    muse_legacy_simnpo,
    pdu_dual,
    pdu_forget,
    positive,
    preference,
    real,
    rmu,
    rmu_retain,
    same_shape,
    satimp,
    undial,
    wga,
    where,
    without_first,
)

__all__ = [
    "accumulate",
    "ascent",
    "ce_u",
    "control_vector",
    "descent",
    "dpo",
    "grad_diff",
    "idk",
    "kl_retain",
    "kto_baseline",
    "kto_logsigmoid",
    "kto_sigmoid",
    "muse_legacy_npo",
    "muse_legacy_simnpo",
    "npo",
    "npo_batch",
    "pdu_dual",
    "pdu_forget",
    "rmu",
    "rmu_retain",
    "satimp",
    "simnpo",
    "simnpo_batch",
    "task_vector",
    "undial",
    "wga",
    "without_first",
]


def descent(nll: jax.Array, lengths: jax.Array, *, denominator=None) -> jax.Array:
    """Fine-tuning: sum(nll) / sum(lengths), the token-mean over the whole batch.

    So does the code of arXiv 2510.16629. Others that accumulate gradients average the token-means
    of their micro-batches, which weighs tokens by how the batch was split.

    Args:
        nll: NLL of the responses, [B].
        lengths: their number of tokens, [B].
        denominator: tokens of the whole batch.
    """
    same_shape("descent", 1, nll=nll, lengths=lengths)
    number = jnp.sum(jnp.asarray(lengths)) if denominator is None else denominator
    return mean(nll, _filled(lengths), number)


def ascent(nll: jax.Array, lengths: jax.Array, *, denominator=None) -> jax.Array:
    """Gradient ascent (GA): -sum(nll) / sum(lengths), minus `descent`, with its arguments.

    The token-mean over the whole batch (arXiv 2510.16629); TOFU, NPO and open-unlearning are the
    same but for their averages over micro-batches.
    """
    same_shape("ascent", 1, nll=nll, lengths=lengths)
    return -descent(nll, lengths, denominator=denominator)


def grad_diff(
    nll_forget: jax.Array,
    lengths_forget: jax.Array,
    nll_retain: jax.Array,
    lengths_retain: jax.Array,
    *,
    gamma=1.0,
    alpha=1.0,
    denominators=(None, None),
) -> jax.Array:
    """Gradient difference: gamma times `ascent` on forget plus alpha times `descent` on retain.

    Each is a token-mean over its own batch; TOFU and open-unlearning have gamma = alpha = 1.

    Args:
        nll_forget: NLL of the forget responses, [B].
        lengths_forget: their number of tokens, [B].
        nll_retain: NLL of the retain responses, [C].
        lengths_retain: their number of tokens, [C].
        gamma: weight of the forget loss.
        alpha: weight of the retain loss.
        denominators: forget tokens and retain tokens of the whole batch.
    """
    same_shape("grad_diff", 1, nll_forget=nll_forget, lengths_forget=lengths_forget)
    same_shape("grad_diff", 1, nll_retain=nll_retain, lengths_retain=lengths_retain)
    forget, retain = denominators
    return gamma * ascent(nll_forget, lengths_forget, denominator=forget) + alpha * descent(
        nll_retain, lengths_retain, denominator=retain
    )


def idk(
    nll_idk: jax.Array,
    lengths_idk: jax.Array,
    nll_retain: jax.Array,
    lengths_retain: jax.Array,
    *,
    denominator=None,
) -> jax.Array:
    """IDK, preference optimisation in TOFU: fine-tuning on "I don't know" answers and retain data.

    One token-mean over both together, so that long retain answers outweigh short refusals.

    Args:
        nll_idk: NLL of "I don't know" lines, as answers to the forget questions, [B].
        lengths_idk: their number of tokens, [B].
        nll_retain: NLL of the retain responses, [C].
        lengths_retain: their number of tokens, [C].
        denominator: tokens of both in the whole batch.
    """
    same_shape("idk", 1, nll_idk=nll_idk, lengths_idk=lengths_idk)
    same_shape("idk", 1, nll_retain=nll_retain, lengths_retain=lengths_retain)
    nll = jnp.concatenate([real(nll_idk), real(nll_retain)])
    lengths = jnp.concatenate([jnp.asarray(lengths_idk), jnp.asarray(lengths_retain)])
    return descent(nll, lengths, denominator=denominator)


def npo(
    nll: jax.Array, ref_nll: jax.Array, *, beta, counted: jax.Array | None = None, denominator=None
) -> jax.Array:
    """NPO: -(2/beta) mean log sigmoid(beta (nll - ref_nll)), a sequence-mean of summed NLLs.

    A sequence's gradient is that of -nll times 2 sigmoid(-beta (nll - ref_nll)): 1 at the
    reference, 0 once it is forgotten. The limit beta -> 0 is gradient ascent on the summed, not the
    token-mean, NLL. (NPO's code, open-unlearning and arXiv 2510.16629.)

    Args:
        nll: NLL of the forget responses, [B].
        ref_nll: the same of the model before *unlearning*, [B]; a constant.
        beta: inverse temperature, > 0.
        counted: which sequences count, bool [B]; None: all.
        denominator: sequences that count in the whole batch.
    """
    positive("npo", "beta", beta)
    same_shape("npo", 1, nll=nll, ref_nll=ref_nll, counted=counted)
    x = -beta * _log_ratio(nll, ref_nll, counted)
    return mean(preference(x, beta), counted, denominator)


def simnpo(
    nll: jax.Array,
    lengths: jax.Array,
    *,
    beta,
    gamma=0.0,
    length_normalized: bool = True,
    gamma_inside: bool = True,
    denominator=None,
) -> jax.Array:
    """SimNPO: -(2/beta) mean log sigmoid(beta (nll / length - gamma)), a sequence-mean.

    Four forms are in use, and they do not agree:

    - the default: SimNPO's code for TOFU, open-unlearning (gamma is called delta there);
    - `gamma_inside=False`: beta nll / length - gamma, as the SimNPO paper writes it;
    - `length_normalized=False`: the summed NLL, gamma = 0: arXiv 2510.16629. Its gradient has the
      weight 2 sigmoid(-beta nll), 3e-11 at nll = 25 and beta = 1: it hardly forgets what is long;
    - `simnpo_batch`: SimNPO's code for WMDP.

    Args:
        nll: NLL of the forget responses, [B].
        lengths: their number of tokens, [B].
        beta: inverse temperature, > 0.
        gamma: margin.
        length_normalized: whether the NLL is divided by the length.
        gamma_inside: whether beta multiplies gamma too.
        denominator: sequences of the whole batch that are not empty.
    """
    positive("simnpo", "beta", beta)
    same_shape("simnpo", 1, nll=nll, lengths=lengths)
    filled = _filled(lengths)
    score = where(filled, nll)
    if length_normalized:
        score = score / jnp.maximum(jnp.asarray(lengths), 1)
    x = beta * (score - gamma) if gamma_inside else beta * score - gamma
    return mean(preference(x, beta), filled, denominator)


def npo_batch(nll: jax.Array, ref_nll: jax.Array, lengths: jax.Array, *, beta) -> jax.Array:
    """NPO in SimNPO's code for WMDP: -(2/beta) log sigmoid(beta (CE - reference CE)).

    CE is the token-mean over the batch, so there is one sigmoid for the batch and not one per
    sequence: a split into micro-batches changes the result. Arguments are those of `npo` and
    `descent`.
    """
    positive("npo_batch", "beta", beta)
    same_shape("npo_batch", 1, nll=nll, ref_nll=ref_nll, lengths=lengths)
    reference = jax.lax.stop_gradient(descent(ref_nll, lengths))
    return _unless_empty(preference(beta * (descent(nll, lengths) - reference), beta), lengths)


def simnpo_batch(nll: jax.Array, lengths: jax.Array, *, beta) -> jax.Array:
    """SimNPO in its authors' code for WMDP: -(2/beta) log sigmoid(beta CE).

    CE is the token-mean over the batch, as in `npo_batch`. Arguments are those of `simnpo`.
    """
    positive("simnpo_batch", "beta", beta)
    same_shape("simnpo_batch", 1, nll=nll, lengths=lengths)
    return _unless_empty(preference(beta * descent(nll, lengths), beta), lengths)


def dpo(
    nll_preferred: jax.Array,
    ref_nll_preferred: jax.Array,
    nll_forget: jax.Array,
    ref_nll_forget: jax.Array,
    *,
    beta,
    counted: jax.Array | None = None,
    denominator=None,
) -> jax.Array:
    """DPO: -(2/beta) mean log sigmoid(beta (preferred log ratio - forget log ratio)).

    A log ratio is log p - log p_ref of a response, so ref_nll - nll; the mean runs over sequences
    (NPO's code, open-unlearning). TOFU's own, broken, version has no factor 2/beta.

    Args:
        nll_preferred: NLL of the preferred answers, such as "I don't know", [B].
        ref_nll_preferred: the same of the model before unlearning, [B]; a constant.
        nll_forget: NLL of the answers to forget, to the same questions, [B].
        ref_nll_forget: the same of the model before unlearning, [B]; a constant.
        beta: inverse temperature, > 0.
        counted: which pairs count, bool [B]; None: all.
        denominator: pairs that count in the whole batch.
    """
    positive("dpo", "beta", beta)
    same_shape(
        "dpo",
        1,
        nll_preferred=nll_preferred,
        ref_nll_preferred=ref_nll_preferred,
        nll_forget=nll_forget,
        ref_nll_forget=ref_nll_forget,
        counted=counted,
    )
    preferred = _log_ratio(nll_preferred, ref_nll_preferred, counted)
    forget = _log_ratio(nll_forget, ref_nll_forget, counted)
    return mean(preference(beta * (preferred - forget), beta), counted, denominator)


def kto_baseline(
    nll_idk: jax.Array,
    ref_nll_idk: jax.Array,
    *,
    counted: jax.Array | None = None,
    denominator=None,
) -> jax.Array:
    """KTO's baseline, a constant: the mean log ratio of "I don't know" answers, over sequences.

    It stands for a divergence but is not clipped at 0, and it enters without beta (NPO's code).

    Args:
        nll_idk: NLL of the answers under the model, [B].
        ref_nll_idk: the same of the model before unlearning, [B].
        counted: which sequences count, bool [B]; None: all.
        denominator: sequences that count in the whole batch.
    """
    same_shape("kto_baseline", 1, nll_idk=nll_idk, ref_nll_idk=ref_nll_idk, counted=counted)
    ratio = _log_ratio(nll_idk, ref_nll_idk, counted)
    return jax.lax.stop_gradient(mean(ratio, counted, denominator))


def kto_sigmoid(
    nll: jax.Array,
    ref_nll: jax.Array,
    baseline,
    *,
    beta,
    counted: jax.Array | None = None,
    denominator=None,
) -> jax.Array:
    """KTO in NPO's code: 1 - (2/beta) mean sigmoid(baseline + beta (nll - ref_nll)).

    The mean runs over sequences. Arguments are those of `npo`, and `baseline`, a constant [], the
    `kto_baseline` of the whole batch.
    """
    x = _kto_argument("kto_sigmoid", nll, ref_nll, baseline, beta, counted)
    return mean(1 - 2 / beta * jax.nn.sigmoid(x), counted, denominator)


def kto_logsigmoid(
    nll: jax.Array,
    ref_nll: jax.Array,
    baseline,
    *,
    beta,
    counted: jax.Array | None = None,
    denominator=None,
) -> jax.Array:
    """KTO in NPO's code: 1 - (2/beta) mean log sigmoid(baseline + beta (nll - ref_nll)).

    Arguments and reduction are those of `kto_sigmoid`. With baseline 0 it is 1 + `npo`.
    """
    x = _kto_argument("kto_logsigmoid", nll, ref_nll, baseline, beta, counted)
    return mean(1 + preference(x, beta), counted, denominator)


def task_vector(fine_tuned_params: Tree, pretrained_params: Tree, params: Tree, alpha) -> Tree:
    """Task arithmetic: params - alpha (fine_tuned - pretrained), leaf by leaf.

    Args:
        fine_tuned_params: the pretrained ones, fine-tuned on the forget set.
        pretrained_params: where that fine-tuning began; in MUSE the same as `params`.
        params: what is to forget; the result has its dtypes.
        alpha: length of the step; 5 in MUSE's scripts.
    """
    structure = jax.tree.structure(params)
    for name, tree in (("fine_tuned", fine_tuned_params), ("pretrained", pretrained_params)):
        if jax.tree.structure(tree) != structure:
            raise ValueError(
                f"task_vector: {name}_params is {jax.tree.structure(tree)}; it must be like "
                f"params, {structure}"
            )

    def moved(fine_tuned, pretrained, leaf):
        same_shape(
            "task_vector",
            jnp.ndim(leaf),
            params=leaf,
            fine_tuned_params=fine_tuned,
            pretrained_params=pretrained,
        )
        step = alpha * (real(fine_tuned) - real(pretrained))
        return (real(leaf) - step).astype(jnp.asarray(leaf).dtype)

    return jax.tree.map(moved, fine_tuned_params, pretrained_params, params)


def accumulate(
    loss: Callable[[Tree, Any], jax.Array], params: Tree, micro_batches: Any
) -> tuple[jax.Array, Tree]:
    """The sums of a loss and of its gradient over micro-batches, one in memory at a time.

    They are those of the whole batch, however it is split, if the loss divides by the whole batch's
    counts: compute these first and pass them as `denominator`.

    Args:
        loss: `loss(params, micro_batch) -> []`.
        params: what the gradient is of.
        micro_batches: arrays with a leading axis [M, ...], M >= 1.

    Returns:
        The loss, [], and its gradient, like `params`.
    """

    def add(total, micro_batch):
        part = jax.value_and_grad(loss)(params, micro_batch)
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(
        jax.value_and_grad(loss), params, jax.tree.map(lambda array: array[0], micro_batches)
    )
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zero, micro_batches)[0]


def _kto_argument(loss: str, nll, ref_nll, baseline, beta, counted) -> jax.Array:
    positive(loss, "beta", beta)
    same_shape(loss, 1, nll=nll, ref_nll=ref_nll, counted=counted)
    return jax.lax.stop_gradient(baseline) - beta * _log_ratio(nll, ref_nll, counted)


def _log_ratio(nll: jax.Array, ref_nll: jax.Array, counted: jax.Array | None) -> jax.Array:
    """log p - log p_ref of every sequence, zero where it does not count; p_ref is constant."""
    if counted is None:
        counted = jnp.ones(jnp.shape(nll), bool)
    return jax.lax.stop_gradient(where(counted, ref_nll)) - where(counted, nll)


def _filled(lengths: jax.Array) -> jax.Array:
    return jnp.asarray(lengths) > 0


def _unless_empty(loss: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(_filled(lengths)), loss, 0)
