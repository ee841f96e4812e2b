"""What a method did on a stream: errors by visit, and what can be said without labels."""

from typing import Any

import numpy as np

from jaxunlearn.tta.streams import Stream

_BINS = 60  # points of a curve over the stream


def by_visit(values: np.ndarray, stream: Stream, n_visits: int) -> list[float]:
    """The mean of values [N], in the stream's order, over each visit of a domain."""
    sums = np.bincount(stream.visit, weights=values, minlength=n_visits)
    return (sums / np.bincount(stream.visit, minlength=n_visits)).tolist()


def curve(values: np.ndarray) -> list[float]:
    """Values [N] in the stream's order as means over at most 60 stretches of equal length."""
    return [float(part.mean()) for part in np.array_split(values, min(_BINS, len(values)))]


def summary(of_seeds: list[list[float]]) -> dict[str, float | None]:
    """Mean over visits and seeds, and its standard error over seeds; None with a single seed."""
    means = np.asarray(of_seeds).mean(axis=1)
    spread = None if len(means) < 2 else float(means.std(ddof=1) / np.sqrt(len(means)))
    return {"mean": float(means.mean()), "stderr": spread}


def of_method(
    predictions: np.ndarray,
    entropies: np.ndarray,
    source: np.ndarray,
    streams: list[Stream],
    labels: np.ndarray | None,
    n_visits: int,
) -> dict[str, Any]:
    """The measures of one method.

    Args:
        predictions: int [S, N], in the order of each seed's stream.
        entropies: of the logits that they are taken from, [S, N].
        source: predictions of the source network for every image, int [images].
        streams: the stream of each seed.
        labels: of every image, or None.
        n_visits: number of visits.
    """
    seeds = list(zip(predictions, entropies, streams, strict=True))
    agrees = [p == source[stream.rows] for p, _, stream in seeds]
    out: dict[str, Any] = {
        "entropy": [by_visit(e, stream, n_visits) for _, e, stream in seeds],
        "agreement": [
            by_visit(a, stream, n_visits) for a, stream in zip(agrees, streams, strict=True)
        ],
    }
    if labels is None:
        return out
    wrong = [p != labels[stream.rows] for p, _, stream in seeds]
    errors = [by_visit(w, stream, n_visits) for w, stream in zip(wrong, streams, strict=True)]
    return out | {
        "errors": errors,
        "error": summary(errors),
        "curve": [curve(w) for w in wrong],
    }
