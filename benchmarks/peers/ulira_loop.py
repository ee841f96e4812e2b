"""U-LiRA as it is released: one target and point after the other."""

import numpy as np
from scipy.stats import norm


def looped(
    margins: np.ndarray,
    forgot: np.ndarray,
    never: np.ndarray,
    shadow: np.ndarray,
    limit: int = 300,
) -> np.ndarray:
    """Accuracy on each target model; arguments as `evaluate.ulira`.

    Args:
        margins: [U, P].
        forgot: [U, P].
        never: [U, P].
        shadow: [U].
        limit: samples per Gaussian.
    """
    rng, accuracies = np.random.default_rng(42), []
    rows = np.flatnonzero(shadow)

    def kinds(p):
        inside, outside = rows[forgot[rows, p]], rows[never[rows, p]]
        n = min(len(inside), len(outside), limit)
        return margins[inside[:n], p], margins[outside[:n], p]

    for target in np.flatnonzero(~shadow):
        positives, negatives = np.flatnonzero(forgot[target]), np.flatnonzero(never[target])
        negatives = rng.permutation(negatives)[: len(positives)]
        right = []
        for truth, points in ((True, positives[: len(negatives)]), (False, negatives)):
            for p in points:
                inside, outside = (
                    norm.pdf(margins[target, p], k.mean(), k.std()) for k in kinds(p)
                )
                right.append((inside / (inside + outside) > 0.5) == truth)
        accuracies.append(np.mean(right))
    return np.array(accuracies)
