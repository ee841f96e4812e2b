"""Membership inference by a threshold on the loss or the confidence."""

import numpy as np


def membership_auc(
    members: np.ndarray,
    others: np.ndarray,
    *,
    classes: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Area under the ROC curve of the attack "members score higher", for every model.

    The Mann-Whitney statistic, ties counting half: the chance that a random member scores above a
    random other point. 0.5 is no information. Scores may be negative losses (Yeom et al. 2018) or
    confidences.

    Args:
        members: scores of the points that are attacked, [N, F].
        others: scores of points known never to have been seen, [N, V].
        classes: of the members, int [F], and of the others, int [V]: members are then compared with
            others of their class alone, and each counts once. Classes differ in difficulty, and
            pooled they give another number than 0.5 where nothing was learned by heart.

    Returns:
        float64 [N]. With `classes` members whose class the others lack do not count; NaN if there
        are no others for any of them.

    Raises:
        ValueError: shapes that do not fit, an empty group, or NaN.
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
    if classes is None:
        return _auc(members, others)
    if not isinstance(classes, tuple | list) or len(classes) != 2:
        raise ValueError(
            f"classes is {classes!r}; those of the members and of the others are needed"
        )
    of_members, of_others = map(np.asarray, classes)
    if of_members.shape != members.shape[1:] or of_others.shape != others.shape[1:]:
        raise ValueError(
            f"classes have shapes {of_members.shape} and {of_others.shape}; "
            f"{members.shape[1:]} and {others.shape[1:]} fit the scores"
        )
    if "O" in (of_members.dtype.kind, of_others.dtype.kind):
        raise ValueError(f"classes are {classes!r}; numbers or names are needed")
    total, weight = np.zeros(len(members)), 0
    for label in np.intersect1d(of_members, of_others):
        attacked = of_members == label
        total += attacked.sum() * _auc(members[:, attacked], others[:, of_others == label])
        weight += attacked.sum()
    return total / weight if weight else np.full(len(members), np.nan)


def _auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    out = np.empty(len(members))
    for model, (attacked, rest) in enumerate(zip(members, np.sort(others), strict=True)):
        below = np.searchsorted(rest, attacked, "left")
        up_to = np.searchsorted(rest, attacked, "right")
        out[model] = (below + up_to).mean() / (2 * len(rest))
    return out
