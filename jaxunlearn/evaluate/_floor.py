"""What KLOM says about retraining itself: the floor that no method can honestly go below."""

from collections.abc import Callable

import numpy as np

from jaxunlearn.evaluate._klom import klom


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
