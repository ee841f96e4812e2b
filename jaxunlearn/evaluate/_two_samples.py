"""Two-sample tests of margins, point by point: do unlearned models and oracles differ at all?"""

import numpy as np

from jaxunlearn.evaluate._klom import check_samples


def kolmogorov_smirnov(unlearned: np.ndarray, oracle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two-sample Kolmogorov-Smirnov test, two-sided, for every point.

    Args:
        unlearned: margins [N, P].
        oracle: margins [M, P].

    Returns:
        The largest distance of the two distribution functions and its asymptotic p-value (as
        `scipy.stats.ks_2samp(..., method="asymp")` has it), float64 [P] each.

    Raises:
        ValueError: shapes that do not fit, no models, or NaN.
    """
    import scipy.stats  # here, since it takes a second to import

    unlearned, oracle = check_samples(unlearned, oracle)
    n, m = len(unlearned), len(oracle)
    pooled = np.concatenate([unlearned, oracle])
    order = np.argsort(pooled, axis=0, kind="stable")
    difference = np.cumsum(np.where(order < n, 1 / n, -1 / m), axis=0)
    ranked = np.take_along_axis(pooled, order, 0)
    is_last = np.ones_like(ranked, bool)  # of equal values: both functions have jumped only there
    is_last[:-1] = ranked[1:] != ranked[:-1]
    distance = np.abs(np.where(is_last, difference, 0)).max(0)
    several, at = np.unique(distance, return_inverse=True)  # few, and each takes a millisecond
    p_value = scipy.stats.kstwo.sf(several, max(1, round(n * m / (n + m))))[at]
    return distance, np.clip(p_value, 0, 1)


def welch(unlearned: np.ndarray, oracle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t-test, two-sided, for every point: unequal variances.

    Args:
        unlearned: margins [N, P], N at least 2.
        oracle: margins [M, P], M at least 2.

    Returns:
        t and its p-value, float64 [P] each; t is 0 and p is 1 where all samples of a point are
        equal, t is infinite and p is 0 where both are constant but differ.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 models, or NaN.
    """
    import scipy.stats  # here, since it takes a second to import

    unlearned, oracle = check_samples(unlearned, oracle)
    if min(len(unlearned), len(oracle)) < 2:
        raise ValueError(
            f"samples have {len(unlearned)} and {len(oracle)} models; both need at least 2"
        )
    first, second = (a.astype(np.float64) for a in (unlearned, oracle))
    gap = first.mean(0) - second.mean(0)
    errors = [a.var(0, ddof=1) / len(a) for a in (first, second)]
    # Constant samples: their variance is rounding.
    errors = [
        np.where(np.ptp(a, 0) == 0, 0, e) for a, e in zip((first, second), errors, strict=True)
    ]
    total = errors[0] + errors[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gap == 0, 0.0, gap / np.sqrt(total))
        freedom = total**2 / (
            errors[0] ** 2 / (len(first) - 1) + errors[1] ** 2 / (len(second) - 1)
        )
    freedom = np.where(total > 0, freedom, 1.0)
    return t, 2 * scipy.stats.t.sf(np.abs(t), freedom)
