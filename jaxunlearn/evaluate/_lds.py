"""The linear datamodeling score."""

import numpy as np


def lds(attributions: np.ndarray, masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Spearman correlation over subsets of predicted and measured outputs, for every target.

    Source: Park et al., TRAK, 2023. Predicted is the sum of the attributions of a subset's points;
    ties share their mean rank.

    Args:
        attributions: effect of each training point on each target, [n, m].
        masks: 0/1 [T, n], subsets that models were trained on; none of those that attributions
            were fitted to.
        outputs: what these models give on each target, [T, m].

    Returns:
        float64 [m] in [-1, 1]; NaN for a target whose predictions or outputs are all equal, which
        have no ranks.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 subsets, or values that are not finite.
    """
    import scipy.stats  # here, since it takes a second to import

    attributions, outputs = (np.asarray(a, np.float64) for a in (attributions, outputs))
    masks = np.asarray(masks)
    if (
        attributions.ndim != 2
        or masks.ndim != 2
        or masks.shape[1] != len(attributions)
        or outputs.shape != (len(masks), attributions.shape[1])
    ):
        raise ValueError(
            f"attributions are {list(attributions.shape)}, masks {list(masks.shape)}, outputs "
            f"{list(outputs.shape)}; [n, m], [T, n] and [T, m] are needed"
        )
    if len(masks) < 2:
        raise ValueError(f"masks has {len(masks)} subset; at least 2 are needed")
    for name, array in (("attributions", attributions), ("outputs", outputs)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
    if not np.isin(masks, (0, 1)).all():
        raise ValueError("masks have values besides 0 and 1")
    predicted = scipy.stats.rankdata(masks.astype(np.float64) @ attributions, axis=0)
    measured = scipy.stats.rankdata(outputs, axis=0)
    predicted -= predicted.mean(0)
    measured -= measured.mean(0)
    scale = np.sqrt(np.square(predicted).sum(0) * np.square(measured).sum(0))
    product = (predicted * measured).sum(0)
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1), np.nan)
