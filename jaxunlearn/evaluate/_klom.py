"""KLOM: the KL divergence of margins between unlearned models and oracles, point by point.

What it says of retraining itself (`noise_floor`) no method can honestly go below.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import logsumexp

Variant = Literal["closed", "easydub", "paper"]

_BLOCK = 512  # points at once: their samples and bins stay in the cache


def klom(
    unlearned: np.ndarray,
    oracle: np.ndarray,
    *,
    bins: int = 20,
    clip: float = 100.0,
    eps: float = 1e-5,
    variant: Variant = "closed",
) -> np.ndarray:
    """KL(unlearned || oracle) of histograms of margins over models, for every point.

    Source: Datamodel Matching, arXiv 2410.23232. Mass of the unlearned models must be covered by
    the oracles'; 0 means that the two samples fill the same bins alike, and full separation gives
    about 9 to 11. Two independent samples of one distribution do not give 0: always read it beside
    `noise_floor`.

    | variant | clipped        | bins from pooled min to max | p, q                          |
    |---------|----------------|-----------------------------|-------------------------------|
    | closed  | both           | `bins`, the maximum in the  | counts/N, counts/M; q >= eps  |
    |         |                | last                        | where p > 0, not renormalised |
    | easydub | both           | `bins`, right-open: samples | counts over those kept;       |
    |         |                | at the maximum are dropped  | q >= eps where p > 0, not     |
    |         |                |                             | renormalised                  |
    | paper   | unlearned only | `bins` - 1, right-open, and | counts over those kept;       |
    |         |                | an empty bin below          | q >= eps, then renormalised   |

    `easydub` and `paper` are what the authors' two releases compute, kept for comparison; where the
    unlearned samples of a point are all dropped (all at the maximum) they say nothing and give 0.
    If all samples of a point are equal, every variant gives 0, and `closed` gives exactly 0 for
    equal samples.

    Args:
        unlearned: margins [N, P], one row per unlearned model.
        oracle: margins [M, P], one row per oracle.
        bins: number of bins, at least 2.
        clip: margins are clipped to [-clip, clip].
        eps: smallest oracle probability; bounds the result by log(1/eps).
        variant: see the table.

    Returns:
        float64 [P], in nats.

    Raises:
        ValueError: shapes that do not fit, no models, NaN, or a setting out of its range.
    """
    unlearned, oracle = check_samples(unlearned, oracle)
    _check_settings("klom", bins, clip, eps)
    _check_variant(variant, oracle)
    if variant == "closed":
        return _by_block(
            lambda p, q: _divergence(*_histograms(p, q, bins, clip), eps), unlearned, oracle
        )
    return _by_block(lambda p, q: _as_released(p, q, bins, clip, eps, variant), unlearned, oracle)


def renyi(
    unlearned: np.ndarray,
    oracle: np.ndarray,
    *,
    order: float = 2.0,
    bins: int = 20,
    clip: float = 100.0,
    eps: float = 1e-5,
) -> np.ndarray:
    """Renyi divergence of the histograms of KLOM's `closed` variant, for every point.

    log(sum p^order q^(1 - order)) / (order - 1), q >= eps where p > 0; towards order 1 it is KLOM.
    The larger the order, the more it is about the worst bin; the authors of Datamodel Matching log
    orders 2, 5 and 10. As q is not renormalised after it is raised to eps, values may fall below 0
    by at most about `bins` times eps.

    Arguments, result and errors are those of `klom`; `order` must be above 0, finite and not 1.
    """
    if not 0 < order < np.inf or order == 1:
        raise ValueError(f"renyi: order is {order}; it must be positive, finite and not 1")
    _check_settings("renyi", bins, clip, eps)
    unlearned, oracle = check_samples(unlearned, oracle)

    def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        p, q = _histograms(p, q, bins, clip)
        # In logarithms, which large orders need.
        log_p = np.log(p, out=np.full_like(p, -np.inf), where=p > 0)
        logs = np.where(p > 0, order * log_p + (1 - order) * np.log(np.maximum(q, eps)), -np.inf)
        return np.asarray(logsumexp(logs, axis=1)) / (order - 1)

    return _by_block(divergence, unlearned, oracle)


def noise_floor(
    first: np.ndarray, second: np.ndarray, *, splits: int = 20, seed: int = 0, **klom_settings
) -> np.ndarray:
    """KLOM between two halves of one pool of oracles, averaged over random halvings.

    `klom(first, second)` of two independent sets of oracles is one draw of this; the average over
    halvings of the pooled set estimates its expectation with much less noise.

    Args:
        first: margins of oracles [N, P].
        second: margins of other oracles [M, P].
        splits: number of random divisions of the pool into N and M models.
        seed: seed of the divisions.
        **klom_settings: passed on to `klom`.

    Returns:
        float64 [splits, P].
    """
    pool = np.concatenate([first, second])
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(splits):
        order = rng.permutation(len(pool))
        rows.append(klom(pool[order[: len(first)]], pool[order[len(first) :]], **klom_settings))
    return np.stack(rows)


def standard_error(
    unlearned: np.ndarray,
    oracle: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int = 40,
    seed: int = 0,
    **klom_settings,
) -> np.ndarray:
    """Bootstrap standard error of a statistic of KLOM over the choice of oracles.

    Args:
        unlearned: margins [N, P].
        oracle: margins of the reference models [M, P], drawn anew with replacement.
        statistic: function of the KLOM of all points [P], such as the mean over a group; [] or [S].
        samples: number of bootstrap samples.
        seed: seed of the bootstrap.
        **klom_settings: passed on to `klom`.

    Returns:
        float64, the shape of the statistic.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        drawn = oracle[rng.integers(0, len(oracle), len(oracle))]
        values.append(statistic(klom(unlearned, drawn, **klom_settings)))
    return np.std(values, axis=0, ddof=1)


def _by_block(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    unlearned: np.ndarray,
    oracle: np.ndarray,
) -> np.ndarray:
    """A measure of samples [points, models] in float64, a block of points at a time: [P]."""
    out = np.empty(unlearned.shape[1])
    for at in range(0, len(out), _BLOCK):
        points = slice(at, at + _BLOCK)
        p, q = (samples[:, points].T.astype(np.float64) for samples in (unlearned, oracle))
        out[points] = measure(p, q)
    return out


def _check_settings(name: str, bins: int, clip: float, eps: float) -> None:
    if bins < 2 or clip <= 0 or not 0 < eps < 1:
        raise ValueError(
            f"{name}: bins is {bins}, clip is {clip}, eps is {eps}; "
            "bins >= 2, clip > 0 and 0 < eps < 1 are needed"
        )


def _check_variant(variant: str, oracle: np.ndarray) -> None:
    if variant not in ("closed", "easydub", "paper"):
        raise ValueError(f"klom: variant is {variant!r}; it must be closed, easydub or paper")
    if variant == "paper" and not np.isfinite(oracle).all():
        raise ValueError(
            "klom: the oracle sample is infinite, and variant 'paper' does not clip it"
        )


def _range(p, q) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of both samples of each point, [P, 1]."""
    return np.minimum(p.min(1), q.min(1))[:, None], np.maximum(p.max(1), q.max(1))[:, None]


def _histograms(p, q, bins: int, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Both samples clipped, as histograms over the bins of their pooled range, [P, bins] each."""
    p, q = np.clip(p, -clip, clip), np.clip(q, -clip, clip)
    low, high = _range(p, q)
    return _histogram(p, low, high, bins), _histogram(q, low, high, bins)


def _histogram(x, low, high, bins: int) -> np.ndarray:
    """Fraction of each row in equal bins from low to high, the maximum in the last: [P, bins]."""
    width = np.where(high > low, high - low, np.inf)  # all samples equal: all in bin 0
    number = bins * (x - low)
    number /= width
    number = np.minimum(number.astype(np.intp), bins - 1)
    return _count(number, bins) / x.shape[1]


def _as_released(p, q, bins: int, clip: float, eps: float, variant: Variant) -> np.ndarray:
    p = np.clip(p, -clip, clip)
    if variant == "easydub":
        q = np.clip(q, -clip, clip)
    low, high = _range(p, q)
    constant = (low == high)[:, 0]
    high = np.where(low == high, low + 1.0, high)
    n_edges = bins if variant == "paper" else bins + 1
    edges = np.linspace(low[:, 0], high[:, 0], n_edges, axis=1)

    def probabilities(x: np.ndarray) -> np.ndarray:
        # numpy.digitize per row: guess the interval, then compare with the very edges.
        guess = ((x - low) / (high - low) * (n_edges - 1)).astype(np.intp)
        number = np.clip(guess, 0, n_edges - 2)
        number -= x < np.take_along_axis(edges, number, 1)
        number += x >= np.take_along_axis(edges, number + 1, 1)
        counts = _count(number, n_edges)[:, :-1]  # the last one: samples at the maximum
        return counts / np.maximum(counts.sum(1, keepdims=True), 1)

    p, q = probabilities(p), probabilities(q)
    if variant == "easydub":
        return _divergence(p, q, eps)
    # The bin below the minimum is empty but has eps of the oracle's mass before renormalising.
    q = np.maximum(q, eps)
    q /= q.sum(1, keepdims=True) + eps
    return np.where(constant, 0.0, _divergence(p, q, 0.0))


def _count(number: np.ndarray, bins: int) -> np.ndarray:
    """Histogram of each row: int [P, S] in [0, bins) -> [P, bins]."""
    n_points = number.shape[0]
    flat = number + bins * np.arange(n_points)[:, None]
    return np.bincount(flat.ravel(), minlength=n_points * bins).reshape(n_points, bins)


def _divergence(p: np.ndarray, q: np.ndarray, eps: float) -> np.ndarray:
    # Where p is 0 the term is 0: the logarithm is taken of 1 there.
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, np.maximum(q, eps), 1.0)
    return np.sum(p * np.log(ratio), axis=1)


def check_samples(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices [models, points] over the same points, without NaN."""
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"samples have shapes {first.shape} and {second.shape}; [N, P] and [M, P] are needed"
        )
    if 0 in (len(first), len(second)):
        raise ValueError(f"samples have {len(first)} and {len(second)} models; both need one")
    for name, samples in (("first", first), ("second", second)):
        if np.isnan(samples).any():
            model, point = np.argwhere(np.isnan(samples))[0]
            raise ValueError(f"the {name} sample is NaN at model {model}, point {point}")
    return first, second
