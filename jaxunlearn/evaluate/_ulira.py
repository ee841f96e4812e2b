"""U-LiRA: can an attacker who knows both worlds tell forgotten points from points never seen?"""

import numpy as np


def ulira(
    margins: np.ndarray,
    forgot: np.ndarray,
    never: np.ndarray,
    shadow: np.ndarray,
    *,
    limit: int = 300,
    seed: int = 42,
) -> np.ndarray:
    """Accuracy of the likelihood-ratio attack on each target model; 0.5 is perfect unlearning.

    Source: Hayes et al., Inexact Unlearning Needs More Careful Evaluations, 2024, as Datamodel
    Matching (arXiv 2410.23232) computes it. For every point, Gaussians are fitted to its margins
    under the shadow models that forgot it and under those that never saw it, to equally many of
    each. A target's point counts as "was in" where the first is likelier. Attacked are the points
    that the target forgot, and as many that it never saw, drawn at random.

    Args:
        margins: those of unlearned models, one row per unlearning, [U, P].
        forgot: whether the model was trained on the point and then forgot it, bool [U, P].
        never: whether it was never trained on the point, bool [U, P].
        shadow: which rows the Gaussians are fitted to; the others are attacked, bool [U].
        limit: samples per Gaussian, at most.
        seed: seed of the draw of points that were never seen.

    Returns:
        float64 [targets]; NaN for a target without a point that can be attacked (at least 2 shadow
        models of both kinds are needed for one).

    Raises:
        ValueError: shapes that do not fit, a point both forgotten and never seen, no target or no
            shadow model, or margins that are not finite.
    """
    margins, forgot, never, shadow = _runs(margins, forgot, never, shadow)
    targets, samples = margins[~shadow], margins[shadow]
    n = np.minimum(np.minimum(forgot[shadow].sum(0), never[shadow].sum(0)), limit)
    likelier = _log_density(targets, *_moments(samples, forgot[shadow], n)) > _log_density(
        targets, *_moments(samples, never[shadow], n)
    )
    rng, accuracies = np.random.default_rng(seed), []
    for was_in, inside, outside in zip(likelier, forgot[~shadow], never[~shadow], strict=True):
        positives = np.flatnonzero(inside & (n >= 2))
        negatives = rng.permutation(np.flatnonzero(outside & (n >= 2)))[: len(positives)]
        positives = positives[: len(negatives)]
        right = np.concatenate([was_in[positives], ~was_in[negatives]])
        accuracies.append(right.mean() if len(right) else np.nan)
    return np.array(accuracies)


def _runs(margins, forgot, never, shadow) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `ulira` as float64 and bool, checked."""
    margins = np.asarray(margins, np.float64)
    forgot, never, shadow = (np.asarray(a, bool) for a in (forgot, never, shadow))
    shapes = (margins.shape, forgot.shape, never.shape, shadow.shape)
    if margins.ndim != 2 or shapes != (margins.shape,) * 3 + (margins.shape[:1],):
        raise ValueError(
            f"margins, forgot, never and shadow are {', '.join(str(list(s)) for s in shapes)}; "
            "[U, P] three times and [U] are needed"
        )
    if (forgot & never).any():
        run, point = np.argwhere(forgot & never)[0]
        raise ValueError(f"point {point} is both forgotten and never seen in row {run}")
    if shadow.all() or not shadow.any():
        raise ValueError(f"shadow holds {shadow.sum()} of {len(shadow)} rows; some, not all, do")
    if not np.isfinite(margins).all():
        raise ValueError("margins are not finite")
    return margins, forgot, never, shadow


def ulira_strong(unlearned: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """The attack on one forget set: unlearned models against retrained ones, point by point.

    Each model is judged by Gaussians fitted to all others.

    Args:
        unlearned: margins of unlearned models on the forget set, [N, F].
        oracle: margins of models that never saw it, [M, F].

    Returns:
        Accuracy for every point, float64 [F]: the mean of both worlds; 0.5 is perfect unlearning.

    Raises:
        ValueError: shapes that do not fit, fewer than 3 models, or margins that are not finite.
    """
    unlearned, oracle = _samples(3, unlearned=unlearned, oracle=oracle)
    right = []
    for world, other in ((unlearned, oracle), (oracle, unlearned)):
        mean = (world.sum(0) - world) / (len(world) - 1)
        square = (np.square(world).sum(0) - np.square(world)) / (len(world) - 1)
        alike = _log_density(world, mean, np.sqrt(np.maximum(square - mean**2, 0)))
        right.append((alike > _log_density(world, other.mean(0), other.std(0))).mean(0))
    return (right[0] + right[1]) / 2


def ulira_cheap(unlearned: np.ndarray, full: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """How much of the forget set still looks trained on: needs a single unlearned model.

    Args:
        unlearned: margins of unlearned models on the forget set, [N, F].
        full: margins of models trained on it, [M, F].
        oracle: margins of models that never saw it, [M', F].

    Returns:
        For every unlearned model, the fraction of points likelier under the full models' Gaussian
        than under the oracles', float64 [N]; compare with that of fresh oracles.

    Raises:
        ValueError: shapes that do not fit, too few models, or margins that are not finite.
    """
    full, oracle = _samples(2, full=full, oracle=oracle)
    (unlearned, _) = _samples(1, unlearned=unlearned, oracle=oracle)
    as_full = _log_density(unlearned, full.mean(0), full.std(0))
    return (as_full > _log_density(unlearned, oracle.mean(0), oracle.std(0))).mean(1)


def _moments(samples, mask, n) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the first n[p] samples of point p where the mask holds."""
    mask = mask & (np.cumsum(mask, 0) <= n)
    count = np.maximum(mask.sum(0), 1)
    mean = np.where(mask, samples, 0).sum(0) / count
    return mean, np.sqrt(np.where(mask, np.square(samples - mean), 0).sum(0) / count)


def _log_density(x, mean, std) -> np.ndarray:
    """Of a Gaussian, without the constant; a deviation of 0 is taken as very small."""
    std = np.maximum(std, 1e-12)
    return -0.5 * np.square((x - mean) / std) - np.log(std)


def _samples(least: int, **named: np.ndarray) -> list[np.ndarray]:
    arrays = {name: np.asarray(value, np.float64) for name, value in named.items()}
    shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in arrays.items())
    if any(a.ndim != 2 for a in arrays.values()) or len({a.shape[-1] for a in arrays.values()}) > 1:
        raise ValueError(f"margins have shapes {shapes}; [N, F] of one F are needed")
    if min(len(a) for a in arrays.values()) < least:
        raise ValueError(f"margins have shapes {shapes}; at least {least} models are needed")
    for name, a in arrays.items():
        if not np.isfinite(a).all():
            raise ValueError(f"{name}: margins are not finite")
    return list(arrays.values())
