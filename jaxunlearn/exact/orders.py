"""In which orders the slices of a shard are learned (S3T, arXiv 2406.16257, section 3.3).

An order is a permutation of the slices 0 .. L-1. Deleting from a slice leaves of each order the
stages before it, so that orders should differ early, and slices that are likely to be deleted from
should come late. All functions return int64 [B, L], B different orders.
"""

import math
from collections.abc import Sequence

import numpy as np


def cyclic(n_slices: int, budget: int) -> np.ndarray:
    """Iterative cyclic rotation, for deletions that are equally likely everywhere (Alg. 1).

    Up to L orders are rotations of 0 .. L-1: no two have a slice at the same position. Beyond, the
    rotations of what follows the first slice are added, then of what follows the first two, and so
    on; every slice comes first equally often, or once more. A smaller budget has the first of these
    orders, so that a larger one never keeps less.

    Args:
        n_slices: L.
        budget: B, at most L!.

    Raises:
        ValueError: fewer than one slice or order, or more orders than there are.
    """
    _check(n_slices, budget)
    orders = [tuple(range(n_slices))]
    for kept in range(n_slices):
        # Parent by parent and not rotation by rotation: their first slices take turns, and so are
        # evenly used at any budget.
        parents = list(orders)
        for by in range(1, n_slices - kept):
            for parent in parents:
                if len(orders) == budget:
                    break
                head, tail = parent[:kept], parent[kept:]
                orders.append(head + tail[-by:] + tail[:-by])
    return np.array(orders, np.int64).reshape(budget, n_slices)


def matching(prior: Sequence[float] | np.ndarray, budget: int, *, horizon: float) -> np.ndarray:
    """Selection by bipartite matching, for deletions of known probabilities (Alg. 2, BMS).

    L orders grow together from one slice each. At every position the slices are handed out so that
    each order gets one it does not have, each slice goes to one order, and the sum of the scores is
    largest: a Latin square. The B orders of highest `score` are kept, best first; of equal ones the
    order with the smaller first slice.

    Args:
        prior: [L], the probability that a request hits each slice; sums to at most 1.
        budget: B, at most L.
        horizon: t, the number of requests that the orders are chosen for.

    Raises:
        ValueError: a budget outside 1 to L, a prior that is none, or a negative horizon.
    """
    from scipy.optimize import linear_sum_assignment  # half a second of every start otherwise

    prior = _checked_prior(prior)
    n_slices = len(prior)
    if not 1 <= budget <= n_slices:
        raise ValueError(f"matching: budget is {budget}; 1 to {n_slices} (the slices) are allowed")
    _check_horizon(horizon)
    orders = np.arange(n_slices)[:, None]
    for _ in range(1, n_slices):
        left = _log_survival(prior[orders].sum(1)[:, None] + prior[None, :])
        left[np.arange(n_slices)[:, None], orders] = -np.inf  # a slice that is there already
        # Only what is added to the score depends on the choice; its largest value is made 1.
        gain = np.exp(horizon * (left - left.max())) if horizon else np.isfinite(left) * 1.0
        # Of assignments that are equally good that one in which better orders gain more.
        place = np.argsort(np.argsort(_log_scores(orders, prior, horizon), kind="stable"))
        gain *= 1 + 1e-12 * place[:, None]
        gain[np.arange(n_slices)[:, None], orders] = -np.inf
        _, chosen = linear_sum_assignment(gain, maximize=True)
        orders = np.concatenate([orders, chosen[:, None]], axis=1)
    # Scores that differ by roundings alone are equal.
    best = np.argsort(-np.round(_log_scores(orders, prior, horizon), 12), kind="stable")
    return orders[best[:budget]]


def score(orders: np.ndarray, prior: Sequence[float] | np.ndarray, *, horizon: float) -> np.ndarray:
    """sum_i i (1 - sum_{j <= i} p_{order_j})^t, float64 [B]: larger lasts longer (Eq. 24)."""
    prior = _checked_prior(prior)
    _check_horizon(horizon)
    return np.exp(_log_scores(np.asarray(orders), prior, horizon))


def conditional(
    prior: Sequence[float] | np.ndarray, budget: int, rng: np.random.Generator
) -> np.ndarray:
    """Orders drawn slice by slice, in proportion to 1 - p among those that are left (App. B.2).

    If a thousand draws in a row give nothing new, the rest is drawn evenly.

    Raises:
        ValueError: a budget outside 1 to L!, or a prior that is none or leaves one slice only.
    """
    weight = 1 - _checked_prior(prior)
    _check(len(weight), budget)
    if len(weight) > 1 and (weight <= 0).any():
        raise ValueError("conditional: prior has a slice of probability 1; it would never be drawn")
    draw = lambda: np.argsort(rng.exponential(size=len(weight)) / weight)  # noqa: E731
    return _distinct(draw, budget, lambda: rng.permutation(len(weight)))


def random(n_slices: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Different random orders, all equally likely.

    Raises:
        ValueError: a budget outside 1 to L!.
    """
    _check(n_slices, budget)
    draw = lambda: rng.permutation(n_slices)  # noqa: E731
    return _distinct(draw, budget, draw)


def diversity(orders: np.ndarray) -> float:
    """Positions at which two orders differ, the mean over all pairs; L at most.

    Raises:
        ValueError: fewer than two orders.
    """
    orders = np.asarray(orders)
    if len(orders) < 2:
        raise ValueError(f"diversity: there are {len(orders)} orders; two are needed")
    pairs = np.triu_indices(len(orders), 1)
    return float((orders[pairs[0]] != orders[pairs[1]]).sum(1).mean())


def check(orders: np.ndarray, n_slices: int | None = None) -> np.ndarray:
    """The orders [..., B, L] as int64, if every row is a permutation.

    Raises:
        ValueError: one is not; it is named.
    """
    orders = np.asarray(orders)
    if orders.ndim < 2 or not np.issubdtype(orders.dtype, np.integer) or 0 in orders.shape:
        raise ValueError(f"orders are {orders.dtype}{list(orders.shape)}; integers [B, L] needed")
    if n_slices is not None and orders.shape[-1] != n_slices:
        raise ValueError(f"orders have {orders.shape[-1]} slices; {n_slices} are needed")
    wrong = (np.sort(orders, axis=-1) != np.arange(orders.shape[-1])).any(-1)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"orders{list(where)} is {orders[where].tolist()}; it is no permutation")
    return orders.astype(np.int64)


def _distinct(draw, budget: int, otherwise) -> np.ndarray:
    orders: dict[tuple[int, ...], None] = {}
    in_vain = 0
    while len(orders) < budget:
        n = len(orders)
        orders[tuple((draw if in_vain < 1000 else otherwise)().tolist())] = None
        in_vain = 0 if len(orders) > n and in_vain < 1000 else in_vain + 1
    return np.array(list(orders), np.int64)


def _log_survival(lost: np.ndarray) -> np.ndarray:
    """log(1 - lost), where sums of probabilities may exceed 1 by a rounding."""
    with np.errstate(divide="ignore"):
        return np.log(np.clip(1 - lost, np.finfo(float).tiny, 1))


def _log_scores(orders: np.ndarray, prior: np.ndarray, horizon: float) -> np.ndarray:
    left = horizon * _log_survival(np.cumsum(prior[orders], axis=-1))
    left = left + np.log(np.arange(1, orders.shape[-1] + 1))
    top = left.max(-1, keepdims=True)
    return np.log(np.exp(left - top).sum(-1)) + top[..., 0]


def _checked_prior(prior: Sequence[float] | np.ndarray) -> np.ndarray:
    prior = np.asarray(prior, float)
    if prior.ndim != 1 or not len(prior):
        raise ValueError(f"prior has shape {list(prior.shape)}; one probability a slice is needed")
    if not np.isfinite(prior).all() or (prior < 0).any() or prior.sum() > 1 + 1e-6:
        raise ValueError(f"prior is {prior.tolist()}; probabilities with a sum of at most 1 needed")
    return prior


def _check_horizon(horizon: float) -> None:
    if not (math.isfinite(horizon) and horizon >= 0):
        raise ValueError(f"horizon is {horizon}; a number of requests, at least 0, is needed")


def _check(n_slices: int, budget: int) -> None:
    if n_slices < 1:
        raise ValueError(f"n_slices is {n_slices}; it must be at least 1")
    if budget < 1 or (n_slices < 21 and budget > math.factorial(n_slices)):
        raise ValueError(f"budget is {budget}; {n_slices} slices have 1 to {n_slices}! orders")
