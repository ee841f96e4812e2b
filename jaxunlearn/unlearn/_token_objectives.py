"""Losses of single tokens and hidden states, and the mean that all objectives share.

`objectives` says what they have in common and exports them.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, losses


def kl_retain(
    logits: jax.Array, ref_logits: jax.Array, mask: jax.Array | None = None, *, denominator=None
) -> jax.Array:
    """KL(reference || model) on the retain set, the mean over positions.

    Zero, with zero gradient, where the model equals the reference.

    Args:
        logits: the model's, [B, T, V].
        ref_logits: those of the model before unlearning, [B, T, V]; a constant.
        mask: which positions count, bool [B, T]; None: all B * T of them, prompt and padding too,
            as TOFU, the NPO repository and open-unlearning do.
        denominator: positions of the whole batch.
    """
    same_shape("kl_retain", 3, logits=logits, ref_logits=ref_logits)
    fits("kl_retain", "mask", mask, "logits", logits)
    logits, ref_logits = (at(mask, x) for x in (logits, ref_logits))
    kl = losses.kl_divergence(logits, jax.lax.stop_gradient(ref_logits))
    return mean(kl, mask, denominator)


def wga(token_nll: jax.Array, valid: jax.Array, *, beta=1.0, denominator=None) -> jax.Array:
    """Weighted gradient ascent: minus the token-mean of p^beta CE, with constant weights p^beta.

    Tokens that the model no longer predicts weigh little, so ascent stops by itself. The token-mean
    runs over the whole batch (open-unlearning, `WGA`).

    Args:
        token_nll: CE = -log p of every response token, [B, R].
        valid: which of them exist, bool [B, R].
        beta: 0 gives `ascent`.
        denominator: tokens of the whole batch.
    """
    same_shape("wga", 2, token_nll=token_nll, valid=valid)
    token_nll = where(valid, token_nll)
    weight = jax.lax.stop_gradient(jnp.exp(-beta * token_nll))
    return -mean(weight * token_nll, valid, denominator)


def satimp(
    token_nll: jax.Array, valid: jax.Array, *, beta1=5.0, beta2=1.0, denominator=None
) -> jax.Array:
    """SatImp: minus the token-mean of p^beta1 (1 - p)^beta2 CE, with constant weights.

    The token-mean runs over the whole batch (open-unlearning, `SatImp`, whose defaults these are).

    Args:
        token_nll: CE = -log p of every response token, [B, R].
        valid: which of them exist, bool [B, R].
        beta1: saturation exponent: less weight for tokens already forgotten.
        beta2: importance exponent: less weight for tokens that the model is sure of; 0 gives `wga`.
        denominator: tokens of the whole batch.
    """
    same_shape("satimp", 2, token_nll=token_nll, valid=valid)
    token_nll = where(valid, token_nll)
    # Rounding can leave p a little above 1, and a negative base has no real power.
    doubt = jnp.maximum(-jnp.expm1(-token_nll), 0)
    weight = jax.lax.stop_gradient(jnp.exp(-beta1 * token_nll) * doubt**beta2)
    return -mean(weight * token_nll, valid, denominator)


def undial(
    logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    beta,
    denominator=None,
) -> jax.Array:
    """UNDIAL: cross-entropy to the teacher's distribution with the label's logit lowered by beta.

    The mean runs over the tokens of the whole batch. open-unlearning takes all positions
    (`valid=None`) and at positions without a label, marked -100, lowers the logit that index -100
    means in Python: `labels % V` gives just that.

    Args:
        logits: the model's, [B, R, V]; position t predicts `labels[:, t]`.
        teacher_logits: those of the model before unlearning, [B, R, V]; a constant.
        labels: integers, [B, R]; one outside [0, V) lowers nothing.
        valid: which positions count, bool [B, R]; None: all.
        beta: how much the label's logit is lowered; 10 in open-unlearning.
        denominator: positions of the whole batch.
    """
    same_shape("undial", 3, logits=logits, teacher_logits=teacher_logits)
    fits("undial", "labels", labels, "logits", logits)
    fits("undial", "valid", valid, "logits", logits)
    logits, teacher_logits = (at(valid, x) for x in (logits, teacher_logits))
    lowered = teacher_logits - beta * _is_label("undial", labels, logits)
    return mean(_soft_cross_entropy(logits, jax.nn.softmax(lowered)), valid, denominator)


def ce_u(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, *, ignore_first=1, denominator=None
) -> jax.Array:
    """CE-U: cross-entropy to the model's own distribution without the label, a constant target.

    The token-mean runs over the valid tokens of the whole batch but for the first of each response
    (arXiv 2503.01224; open-unlearning, `CEU`). It equals entropy, not zero, where the label has no
    probability; the gradient is zero there.

    Args:
        logits: [B, R, V], V >= 2; position t predicts `labels[:, t]`.
        labels: integers, [B, R]; one outside [0, V) gives no gradient.
        valid: which positions are response tokens, bool [B, R].
        ignore_first: how many tokens at the beginning of each response do not count.
        denominator: tokens that count in the whole batch, `without_first(valid, 1).sum()`.
    """
    same_shape("ce_u", 2, labels=labels, valid=valid)
    fits("ce_u", "labels", labels, "logits", logits)
    if logits.shape[-1] < 2:
        raise ValueError(f"ce_u: logits have shape {logits.shape}; the last axis needs V >= 2")
    logits = at(valid, logits)
    others = jnp.where(_is_label("ce_u", labels, logits), -jnp.inf, logits)
    cross_entropy = _soft_cross_entropy(logits, jax.nn.softmax(others))
    return mean(cross_entropy, without_first(valid, ignore_first), denominator)


def without_first(valid: jax.Array, count: int = 1) -> jax.Array:
    """`valid` [..., R] without the first `count` valid positions of each sequence."""
    valid = jnp.asarray(valid, bool)
    return valid & (jnp.cumsum(valid, axis=-1) > count)


def pdu_forget(logits: jax.Array, valid: jax.Array | None = None, *, denominator=None) -> jax.Array:
    """PDU's loss on the forget set: the squared distance from the largest to the mean logit.

    The mean over positions pulls the model to the uniform distribution.

    Args:
        logits: [B, T, V].
        valid: which positions count, bool [B, T]; None: all B * T of them, prompt and padding too,
            as open-unlearning (`PDU`) does.
        denominator: positions of the whole batch.
    """
    same_shape("pdu_forget", 3, logits=logits)
    fits("pdu_forget", "valid", valid, "logits", logits)
    logits = at(valid, logits)
    gap = jnp.max(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return mean(jnp.square(gap), valid, denominator)


def pdu_dual(lam, retain_loss, eps, step) -> jax.Array:
    """PDU's dual update, after a step or an epoch: max(0, lam + step (retain_loss - eps)).

    The objective between updates is `forget_weight * pdu_forget + lam * (retain_loss - eps)`.

    Args:
        lam: weight of the retain loss.
        retain_loss: cross-entropy on the retain set.
        eps: the retain loss that is accepted.
        step: step size, 1 in open-unlearning.
    """
    return jax.lax.stop_gradient(jnp.maximum(0.0, lam + step * (retain_loss - eps)))


def control_vector(key: jax.Array, width: int, scale) -> jax.Array:
    """RMU's target: uniform in [0, 1)^width, so all positive, with length `scale`: [width].

    Draw it once; it is fixed for the run, one for each topic.
    """
    checks.at_least("control_vector: width", width, 1)
    direction = jax.random.uniform(key, (width,))
    return scale * direction / jnp.linalg.norm(direction)


def rmu(
    hidden: jax.Array, control: jax.Array, mask: jax.Array | None = None, *, denominator=None
) -> jax.Array:
    """RMU on the forget set: the squared distance of hidden states from the control vector.

    Two reductions, both with the mean over D within a position:

    - Without a mask the mean over all B * T positions, padding too: WMDP's mean squared error.
    - With one the mean over the positions of each sequence, then over the sequences that have any:
      what open-unlearning's RMU means. Its code divides sums [B] by counts [B, 1], so that it takes
      the mean of the sums times the mean of the inverse counts; the two agree where all sequences
      have the same count.

    Args:
        hidden: states after the steered layer, [B, T, D].
        control: `control_vector`, [D]; a constant.
        mask: which positions count, bool [B, T] (open-unlearning: where the token is of the
            response).
        denominator: count in the whole batch: positions without a mask, sequences with one.
    """
    if jnp.shape(control) != jnp.shape(hidden)[-1:]:
        raise ValueError(
            f"rmu: control has shape {jnp.shape(control)}, hidden {jnp.shape(hidden)}; "
            "control needs the last axis of hidden"
        )
    return _hidden_error("rmu", hidden, control, mask, denominator)


def rmu_retain(
    hidden: jax.Array, frozen_hidden: jax.Array, mask: jax.Array | None = None, *, denominator=None
) -> jax.Array:
    """RMU on the retain set: the squared distance of hidden states from the frozen model's.

    Args:
        hidden: states after the steered layer, [B, T, D].
        frozen_hidden: the same states of the model before unlearning, [B, T, D]; a constant.
        mask: as in `rmu`, with the same two reductions.
        denominator: as in `rmu`.
    """
    same_shape("rmu_retain", 3, hidden=hidden, frozen_hidden=frozen_hidden)
    return _hidden_error("rmu_retain", hidden, frozen_hidden, mask, denominator)


def muse_legacy_npo(
    logits: jax.Array, ref_logits: jax.Array, *, beta, denominator=None
) -> jax.Array:
    """NPO as MUSE's code has it, a known defect, for comparison with its tables only.

    It takes raw logits for log-probabilities: -(2/beta) times the mean over all B * T * V entries
    of log sigmoid(beta (reference - model)); labels have no part in it (muse_bench, issue 2).

    Args:
        logits: the model's, [B, T, V].
        ref_logits: those of the model before unlearning, [B, T, V]; a constant.
        beta: inverse temperature, > 0.
        denominator: entries of the whole batch.
    """
    positive("muse_legacy_npo", "beta", beta)
    same_shape("muse_legacy_npo", 3, logits=logits, ref_logits=ref_logits)
    gap = jax.lax.stop_gradient(real(ref_logits)) - real(logits)
    return mean(preference(beta * gap, beta), None, denominator)


def muse_legacy_simnpo(logits: jax.Array, *, beta, gamma=0.0, denominator=None) -> jax.Array:
    """SimNPO as its authors' code for MUSE has it, a known defect, for comparison only.

    It takes raw logits for log-probabilities: -(2/beta) times the mean over all B * T * V entries
    of log sigmoid(beta (-model - gamma)) (Unlearn-Simple, issue 5). Arguments are those of
    `muse_legacy_npo`, and `gamma`, the margin.
    """
    positive("muse_legacy_simnpo", "beta", beta)
    same_shape("muse_legacy_simnpo", 3, logits=logits)
    return mean(preference(beta * (-real(logits) - gamma), beta), None, denominator)


def preference(x: jax.Array, beta) -> jax.Array:
    """-(2/beta) log sigmoid(x); finite, as its gradient is, wherever x is."""
    return -(2 / beta) * jax.nn.log_sigmoid(x)


def mean(values: jax.Array, counted: jax.Array | None = None, denominator=None) -> jax.Array:
    """The sum of the counted values (None: all) over their number or `denominator`; 0 for 0 / 0."""
    if counted is None:
        total, number = jnp.sum(real(values)), values.size
    else:
        total, number = jnp.sum(where(counted, values)), jnp.sum(jnp.asarray(counted, bool))
    # As floating point: the entries of a batch's logits can be more than int32 holds.
    number = jnp.asarray(number if denominator is None else denominator, total.dtype)
    return total / jnp.where(number > 0, number, 1)


def where(counted: jax.Array, values: jax.Array) -> jax.Array:
    """The counted values in at least float32, and zero elsewhere.

    Whatever stands elsewhere, NaN too, reaches neither the value nor the gradient of a loss, if it
    is taken out before the loss is computed from it.
    """
    return jnp.where(jnp.asarray(counted, bool), real(values), 0)


def at(counted: jax.Array | None, logits: jax.Array) -> jax.Array:
    """`where` for logits [..., V] at positions [...]; without positions all of them count."""
    return real(logits) if counted is None else where(jnp.asarray(counted)[..., None], logits)


def real(values: jax.Array) -> jax.Array:
    """As floating point of at least float32."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def same_shape(loss: str, n_axes: int, **arrays) -> None:
    """Raises a ValueError unless all arrays but None have one shape, of so many axes."""
    shapes = [(name, jnp.shape(array)) for name, array in arrays.items() if array is not None]
    (first, shape), *others = shapes
    if len(shape) != n_axes:
        raise ValueError(f"{loss}: {first} has shape {shape}; it must have {n_axes} axes")
    for name, other in others:
        if other != shape:
            raise ValueError(f"{loss}: {name} has shape {other}, {first} {shape}; must be equal")


def fits(loss: str, name: str, array: jax.Array | None, of: str, larger: jax.Array) -> None:
    """Raises a ValueError unless the array is None or has all axes of the larger but its last."""
    if array is not None and jnp.shape(array) != jnp.shape(larger)[:-1]:
        raise ValueError(
            f"{loss}: {name} has shape {jnp.shape(array)}, {of} {jnp.shape(larger)}; "
            f"{name} needs all axes of {of} but the last"
        )


def positive(loss: str, name: str, value) -> None:
    """Raises a ValueError if an inverse temperature is not above 0 and finite, unless traced."""
    checks.temperature(f"{loss}: {name}", value)


def _hidden_error(loss: str, hidden, target, mask, denominator) -> jax.Array:
    same_shape(loss, 3, hidden=hidden)
    fits(loss, "mask", mask, "hidden", hidden)
    error = losses.squared_error(real(hidden), jax.lax.stop_gradient(real(target)))
    if mask is None:
        return mean(error, None, denominator)
    mask = jnp.asarray(mask, bool)
    lengths = mask.sum(axis=1)
    per_sequence = where(mask, error).sum(axis=1) / jnp.maximum(lengths, 1)
    return mean(per_sequence, lengths > 0, denominator)


def _is_label(loss: str, labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Bool [..., V]: whether an entry is its position's label."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{loss}: labels have dtype {labels.dtype}; they must be integers")
    return labels[..., None] == jnp.arange(logits.shape[-1])


def _soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-sum(target log softmax(logits)) over the last axis; the target is a constant."""
    return -jnp.sum(jax.lax.stop_gradient(target) * jax.nn.log_softmax(real(logits)), axis=-1)
