"""Membership inference by a threshold on the loss or the confidence."""

import numpy as np


def membership_auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of the attack "members score higher", for every model.

    The Mann-Whitney statistic, ties counting half: the chance that a random member scores above a
    random other point. 0.5 is no information. Scores may be negative losses (Yeom et al. 2018) or
    confidences.

    Args:
        members: scores of the points that are attacked, [N, F].
        others: scores of points known never to have been seen, [N, V].

    Returns:
        float64 [N].
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if members.ndim != 2 or others.ndim != 2 or len(members) != len(others):
        raise ValueError(
            f"scores have shapes {members.shape} and {others.shape}; [N, F] and [N, V] are needed"
        )
    if 0 in (members.shape[1], others.shape[1]):
        raise ValueError("scores: both groups need at least one point")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("scores contain NaN")
    out = np.empty(len(members))
    for model, (attacked, rest) in enumerate(zip(members, np.sort(others), strict=True)):
        below = np.searchsorted(rest, attacked, "left")
        up_to = np.searchsorted(rest, attacked, "right")
        out[model] = (below + up_to).mean() / (2 * len(rest))
    return out
