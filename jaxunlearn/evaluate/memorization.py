"""How much of a text a language model has by heart, and whether it gives away that it saw it.

All read one `TokenStats` (`nn.likelihood`), so that a single forward pass serves them:
per response token [B, R] the label's log-probability, whether it is the most likely token, and the
mean and variance of the log-probabilities under the model's own distribution. Positions that are
not `valid` are padding and are never read; they may stand anywhere in a row.

Source of the definitions: locuslab/open-unlearning. Where it leaves out the last label of a
response, which is the end-of-sequence token, `drop_last` does.

The scores of membership attacks (`loss`, `min_k`, `min_k_plus_plus`, `zlib`, `reference`) are
losses: *low* for members. `auc` asks whether members score higher, so give it their negatives:
`auc(-loss(members), -loss(others))`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import compress

import numpy as np

from jaxunlearn.evaluate._checks import finite, strings
from jaxunlearn.evaluate._membership import membership_auc

if TYPE_CHECKING:
    from jaxunlearn.nn.language.likelihood import TokenStats


def probability(stats: "TokenStats", *, drop_last: bool = False) -> np.ndarray:
    """exp(mean log-probability): the geometric mean of the probabilities of a response's tokens.

    Arguments and errors are those of `loss`.

    Returns:
        float64 [B] in [0, 1].
    """
    return np.exp(-loss(stats, drop_last=drop_last))


def exact_memorization(stats: "TokenStats", *, drop_last: bool = True) -> np.ndarray:
    """Fraction of a response's tokens that are the model's most likely ones, teacher-forced.

    Args:
        stats: token statistics of B responses.
        drop_last: leave out the last label of each response, as open-unlearning does.

    Returns:
        float64 [B] in [0, 1]; NaN for a response without tokens.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    valid = _valid(stats, drop_last)
    n_hits, n = (_hit(stats, valid) & valid).sum(1), valid.sum(1)
    return np.where(n > 0, n_hits / np.maximum(n, 1), np.nan)


def extraction_strength(stats: "TokenStats", *, drop_last: bool = True) -> np.ndarray:
    """1 - k/n, k being the least prefix after which the model's most likely tokens are the rest.

    Teacher-forced, over the n tokens of a response. Edge cases, as open-unlearning has them:

    | response                | result |
    |-------------------------|--------|
    | all tokens right        | 1      |
    | the last one wrong      | 1/n    |
    | without tokens          | 0      |

    Arguments and errors are those of `exact_memorization`.

    Returns:
        float64 [B] in [0, 1].
    """
    valid = _valid(stats, drop_last)
    right_to_the_end = np.logical_and.accumulate((_hit(stats, valid) | ~valid)[:, ::-1], axis=1)
    n_suffix = (right_to_the_end[:, ::-1] & valid).sum(1)
    n = valid.sum(1)
    return np.where(n > 0, np.maximum(n_suffix, 1) / np.maximum(n, 1), 0.0)


def loss(stats: "TokenStats", *, drop_last: bool = False) -> np.ndarray:
    """Mean negative log-probability of a response's tokens, nats: the attack by loss.

    Args:
        stats: token statistics of B responses.
        drop_last: leave out the last label of each response.

    Returns:
        float64 [B].

    Raises:
        ValueError: a response without tokens, or log-probabilities that are not finite.
    """
    valid = _valid(stats, drop_last)
    n = _lengths("loss", valid)
    return -np.where(valid, _field(stats, "logp", valid), 0).sum(1) / n


def min_k(stats: "TokenStats", k: float = 0.4, *, drop_last: bool = False) -> np.ndarray:
    """Minus the mean of the lowest log-probabilities: Min-K% Prob (Shi et al., arXiv 2310.16789).

    Args:
        stats: token statistics of B responses.
        k: the share of a response's n tokens, in (0, 1]: max(1, int(n k)) of them. 0.4 is what MUSE
            and open-unlearning's settings use; MUSE itself takes int(n k), which may be none.
        drop_last: leave out the last label of each response (open-unlearning does, MUSE has none).

    Returns:
        float64 [B], low for members; k = 1 is `loss`.

    Raises:
        ValueError: k out of its range, a response without tokens, or values that are not finite.
    """
    valid = _valid(stats, drop_last)
    return _mean_of_lowest("min_k", _field(stats, "logp", valid), valid, k)


def min_k_plus_plus(stats: "TokenStats", k: float = 0.4, *, drop_last: bool = False) -> np.ndarray:
    """Min-K%++ (Zhang et al., arXiv 2404.02936): `min_k` of standardised log-probabilities.

    (logp - mean)/sqrt(max(variance, 1e-6)), mean and variance being those of the log-probabilities
    of all tokens under the model's distribution at that position.

    Arguments, result and errors are those of `min_k`.
    """
    valid = _valid(stats, drop_last)
    logp, mean, variance = (_field(stats, f, valid) for f in ("logp", "mean", "variance"))
    logp, mean, variance = (np.where(valid, a, 0) for a in (logp, mean, variance))
    standard = (logp - mean) / np.sqrt(np.maximum(variance, 1e-6))
    return _mean_of_lowest("min_k_plus_plus", standard, valid, k)


def zlib(stats: "TokenStats", texts: Sequence[str]) -> np.ndarray:
    """`loss` over the length in bytes of the compressed text (Carlini et al., arXiv 2012.07805).

    Args:
        stats: token statistics of B responses.
        texts: these responses, B strings.

    Returns:
        float64 [B], nats per byte; low for members.

    Raises:
        ValueError: as `loss`, or another number of texts.
    """
    losses = loss(stats)
    texts = strings("zlib: texts", texts, len(losses))
    return losses / np.asarray([len(compress(text.encode())) for text in texts], np.float64)


def reference(stats: "TokenStats", reference_stats: "TokenStats") -> np.ndarray:
    """`loss` minus that of another model, which tells how hard the text is (arXiv 2012.07805).

    Args:
        stats: token statistics of B responses.
        reference_stats: those of the same responses under the reference model.

    Returns:
        float64 [B], nats per token; low for members.

    Raises:
        ValueError: as `loss`, or another number of responses.
    """
    nll, other = loss(stats), loss(reference_stats)
    if len(nll) != len(other):
        raise ValueError(
            f"reference: reference_stats has {len(other)} responses; {len(nll)} are needed, as in "
            "stats"
        )
    return nll - other


def auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Area under the ROC curve of "members score higher", ties counting half: 0.5 tells nothing.

    What `sklearn.metrics.roc_auc_score` gives with label 1 for members.

    Args:
        members: scores [N]; losses enter with the opposite sign.
        nonmembers: scores [M].

    Returns:
        In [0, 1].

    Raises:
        ValueError: scores that are empty, not vectors, or not finite.
    """
    members, nonmembers = finite("members", members, "N"), finite("nonmembers", nonmembers, "M")
    return float(membership_auc(members[None], nonmembers[None])[0])


def _valid(stats, drop_last: bool) -> np.ndarray:
    """Positions that count, bool [B, R]."""
    valid = np.asarray(stats.valid)
    if valid.ndim != 2 or valid.dtype != bool:
        raise ValueError(f"stats.valid is {valid.dtype} {list(valid.shape)}; bool [B, R] is needed")
    if drop_last:
        n_after = valid.sum(1, keepdims=True) - np.cumsum(valid, 1)
        valid = valid & (n_after > 0)
    return valid


def _hit(stats, valid: np.ndarray) -> np.ndarray:
    hit = np.asarray(stats.hit)
    if hit.shape != valid.shape or hit.dtype != bool:
        raise ValueError(
            f"stats.hit is {hit.dtype} {list(hit.shape)}; bool {list(valid.shape)} is needed, as "
            "stats.valid"
        )
    return hit


def _field(stats, name: str, valid: np.ndarray) -> np.ndarray:
    values = np.asarray(getattr(stats, name), np.float64)
    if values.shape != valid.shape:
        raise ValueError(
            f"stats.{name} has shape {list(values.shape)}; {list(valid.shape)} is needed, as "
            "stats.valid"
        )
    wrong = np.argwhere(valid & ~np.isfinite(values))
    if len(wrong):
        row, token = wrong[0]
        raise ValueError(
            f"stats.{name} is {values[row, token]} in row {row}, position {token}; it must be "
            "finite where stats.valid is true"
        )
    return values


def _lengths(name: str, valid: np.ndarray) -> np.ndarray:
    n = valid.sum(1)
    if (n == 0).any():
        raise ValueError(
            f"{name}: row {int(np.argmin(n))} of stats has no token that counts; at least 1 is "
            "needed"
        )
    return n


def _mean_of_lowest(name: str, values: np.ndarray, valid: np.ndarray, k: float) -> np.ndarray:
    if not 0 < k <= 1:
        raise ValueError(f"{name}: k is {k}; it must lie in (0, 1]")
    n = _lengths(name, valid)
    n_lowest = np.maximum(1, (n * k).astype(int))[:, None]
    ranked = np.sort(np.where(valid, values, np.inf), axis=1)
    chosen = np.arange(ranked.shape[1]) < n_lowest
    return -np.where(chosen, ranked, 0).sum(1) / n_lowest[:, 0]
