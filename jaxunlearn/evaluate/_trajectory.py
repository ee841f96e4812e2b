"""How margins move towards the oracles' in the course of unlearning, and past them."""

import dataclasses

import numpy as np

from jaxunlearn.evaluate._klom import klom


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What `trajectory` finds; S snapshots, P points.

    Attributes:
        klom: KLOM of every snapshot and point, [S, P].
        gap: mean margin of the unlearned models minus that of the oracles, in standard deviations
            of the oracles' margin, [S, P].
        reached: the first snapshot at which the gap of a point is 0 or has another sign than at the
            start, int [P]; -1 where that never happens.
        best: the snapshot of a point's least KLOM, int [P].
        missed: how much lower the mean KLOM would be if every point could stop at its own `best`,
            instead of all at the one snapshot that is best for their mean; nats.
    """

    klom: np.ndarray
    gap: np.ndarray
    reached: np.ndarray
    best: np.ndarray
    missed: float


def trajectory(unlearned: np.ndarray, oracle: np.ndarray) -> Trajectory:
    """Follows every point of a group through snapshots of unlearning: the "missing targets".

    An objective that does not know where to stop, such as ascent, brings the points to the margins
    of the oracles at different times and then overshoots: whenever it ends, some points are not
    there yet and others are past. Source: Datamodel Matching, arXiv 2410.23232, whose authors plot
    margins over time.

    Args:
        unlearned: margins of the unlearned models, the first snapshot being the start, [S, N, P].
        oracle: margins of the oracles [M, P].

    Returns:
        See `Trajectory`.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    unlearned, oracle = np.asarray(unlearned), np.asarray(oracle)
    if unlearned.ndim != 3 or len(unlearned) == 0:
        raise ValueError(f"unlearned has shape {list(unlearned.shape)}; [S, N, P] is needed")
    scores = np.stack([klom(snapshot, oracle) for snapshot in unlearned])
    spread = np.maximum(oracle.std(0, dtype=np.float64), 1e-12)
    gap = (unlearned.mean(1, dtype=np.float64) - oracle.mean(0, dtype=np.float64)) / spread
    crossed = np.sign(gap) != np.sign(gap[0])
    crossed[0] = gap[0] == 0
    reached = np.where(crossed.any(0), crossed.argmax(0), -1)
    missed = scores.mean(1).min() - scores.min(0).mean()
    return Trajectory(scores, gap, reached, scores.argmin(0), float(missed))
