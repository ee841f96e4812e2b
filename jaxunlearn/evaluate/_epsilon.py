"""The forgetting epsilon of the NeurIPS 2023 unlearning challenge."""

import numpy as np

from jaxunlearn.evaluate._klom import check_samples

CAP = 50.0
_PER_UNIT = 100  # thresholds per unit of confidence
_BUFFER = 2.0  # how far the window of the double threshold is moved either way


def forgetting_epsilon(
    unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 1e-5
) -> np.ndarray:
    """How well the best threshold attack tells unlearned from retrained models, point by point.

    Of all single and double thresholds on the challenge's grid, the largest (epsilon, delta) that
    the attack's error rates prove (Triantafillou et al. 2024; google-deepmind
    unlearning_evaluation). The grid matters: thresholds at the samples themselves give another
    value on about a third of all points. Positive is whichever side has the larger median.

    - Perfect separation, or one side whose range is below 1 % of the other's: `CAP` (50).
    - Thresholds with exactly one error rate of zero are discarded (too few samples to tell).
    - No threshold left, or both sides constant and equal: 0, nothing is proved.

    Args:
        unlearned: logit-scaled confidences (`margins`) [N, P].
        retrained: the same of retrained models [M, P].
        delta: failure probability of differential privacy, in [0, 1).

    Returns:
        float64 [P], in [0, 50].

    Raises:
        ValueError: shapes that do not fit, no models, NaN, or delta out of range.
    """
    unlearned, retrained = check_samples(unlearned, retrained)
    if not 0 <= delta < 1:
        raise ValueError(f"forgetting_epsilon: delta is {delta}; it must lie in [0, 1)")
    unlearned, retrained = unlearned.astype(np.float64), retrained.astype(np.float64)
    retrained_is_positive = np.median(retrained, axis=0) > np.median(unlearned, axis=0)
    out = np.empty(unlearned.shape[1])
    for point, swap in enumerate(retrained_is_positive):
        sides = unlearned[:, point], retrained[:, point]
        positive, negative = sides[::-1] if swap else sides
        out[point] = _one_point(np.sort(positive), np.sort(negative), delta)
    return out


def _one_point(positive: np.ndarray, negative: np.ndarray, delta: float) -> float:
    """The epsilon of two sorted samples."""
    widths = positive[-1] - positive[0], negative[-1] - negative[0]
    if max(widths) == 0:
        return 0.0 if positive[0] == negative[0] else CAP
    if min(widths) / max(widths) < 0.01:
        return CAP
    # The errors are counts, and most of the 160,000 thresholds make the same ones.
    seen = np.zeros((len(negative) + 1, len(positive) + 1), bool)
    for errors in (_double_threshold_errors, _single_threshold_errors):
        seen[errors(positive, negative)] = True
    false_positives, false_negatives = np.nonzero(seen)
    return _best(false_positives / len(negative), false_negatives / len(positive), delta)


def _double_threshold_errors(positive: np.ndarray, negative: np.ndarray) -> tuple:
    """Between two thresholds lies the narrower sample: false positives and negatives, [T] each."""
    narrow, wide = positive, negative
    swap = positive[-1] - positive[0] >= negative[-1] - negative[0]
    if swap:
        narrow, wide = negative, positive
    width = narrow[-1] - narrow[0]
    first, last = narrow[0] + width - _BUFFER, narrow[-1] + _BUFFER
    right = np.linspace(first, last, int(np.ceil((last - first) * _PER_UNIT)))
    n_left = int(np.ceil(2 * _BUFFER * _PER_UNIT))
    left = np.linspace(right - width - _BUFFER, right - width + _BUFFER, n_left, axis=1)

    def inside(x: np.ndarray) -> np.ndarray:
        up_to_right = np.searchsorted(x, right, "right")[:, None]
        below_left = np.searchsorted(x, left.ravel(), "left").reshape(left.shape)
        return np.maximum(up_to_right - below_left, 0).ravel()

    # The narrower side plays the positive part here. Its misses and the other's hits are the two
    # error rates; swapping the parts swaps them, and the epsilon is symmetric in them.
    misses, hits = len(narrow) - inside(narrow), inside(wide)
    return (misses, hits) if swap else (hits, misses)


def _single_threshold_errors(positive: np.ndarray, negative: np.ndarray) -> tuple:
    """Above the threshold lies the positive sample: false positives and negatives, [T] each."""
    low, high = min(positive[0], negative[0]), max(positive[-1], negative[-1])
    thresholds = np.linspace(low, high, int(np.ceil((high - low) * _PER_UNIT)))
    false_positives = len(negative) - np.searchsorted(negative, thresholds, "left")
    false_negatives = np.searchsorted(positive, thresholds, "left")
    return false_positives, false_negatives


def _best(fpr: np.ndarray, fnr: np.ndarray, delta: float) -> float:
    if np.any((fpr == 0) & (fnr == 0)):
        return CAP
    kept = (fpr > 0) & (fnr > 0)
    if not kept.any():
        return 0.0
    fpr, fnr = fpr[kept], fnr[kept]

    def bound(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        power = 1 - delta - a
        return np.where(power > 0, np.log(np.where(power > 0, power, 1.0)) - np.log(b), 0.0)

    best = np.max(np.maximum(bound(fpr, fnr), bound(fnr, fpr)))
    return float(np.clip(best, 0.0, CAP))
