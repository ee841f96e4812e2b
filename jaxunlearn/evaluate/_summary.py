"""Numbers that stand for many: per group of points."""

import numpy as np


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, median, 95th and 99th percentile over the points of a group.

    Args:
        values: one number per point, [P], at least one.
    """
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"mean": float(np.mean(values)), "p50": p50, "p95": p95, "p99": p99}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of points whose largest logit is the label's: [..., P, K], [P] -> a number."""
    return float(np.mean(np.argmax(logits, axis=-1) == labels))
