"""How long exact unlearning lasts until everything must be trained again (S3T, section 3.5).

A shard is dead once every slice that comes first in one of its orders has been deleted from; the
system is, once all shards are. Requests hit slices at random and may hit one twice. `Lifetime`s and
`retention` are exact: no slice is assumed to be independent of another.
"""

import dataclasses
import math
import operator

import numpy as np

from jaxunlearn.exact import orders as orders_

_UNIONS = 2**20  # of deleted sets, the most that `retention` goes through


@dataclasses.dataclass(frozen=True)
class Lifetime:
    """Requests until all shards are dead, the one that kills the last included.

    Attributes:
        mean: expected number.
        std: standard deviation.
    """

    mean: float
    std: float


def expected_requests(n_shards: int, n_slices: int, budget: int) -> float:
    """m L H_{m B'} requests, B' = min(B, L), with orders that begin with B' different slices.

    H_n is 1 + 1/2 + .. + 1/n: the time to collect m B' of m L coupons (Lemma 1). A budget of 1 is
    SISA's. Every slice is hit equally often; see `lifetime` for a prior.

    Raises:
        ValueError: an argument below 1.
    """
    return uniform(n_shards, n_slices, budget).mean


def uniform(n_shards: int, n_slices: int, budget: int) -> Lifetime:
    """`expected_requests` with its standard deviation."""
    for name, value in {"n_shards": n_shards, "n_slices": n_slices, "budget": budget}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    return _collecting(n_shards * min(budget, n_slices), n_shards * n_slices)


def _collecting(wanted: int, n: int) -> Lifetime:
    """Requests until all of some of n equally likely slices are hit."""
    missing = np.arange(1, wanted + 1) / n  # the probability that a request hits one of so many
    mean, variance = np.sum(1 / missing), np.sum((1 - missing) / missing**2)
    return Lifetime(float(mean), float(np.sqrt(variance)))


def lifetime(orders: np.ndarray, prior: np.ndarray | None = None) -> Lifetime:
    """Requests until all shards are dead, whatever the orders and probabilities.

    By Poissonisation: with requests at rate 1, slice i is first hit after an exponential time of
    rate p_i, independently of all others.

    Args:
        orders: [m, B, L].
        prior: [m, L], the probability that a request hits each slice, with sum 1 over all; uniform
            if None.

    Raises:
        ValueError: orders that are no permutations, or a prior that is none. A first slice that is
            never hit gives an infinite lifetime, no error.
    """
    orders, rates = checked(orders, prior)
    needed = firsts(orders)
    if prior is None:
        return _collecting(int(needed.sum()), needed.size)
    rates = rates[needed]
    if (rates == 0).any():
        return Lifetime(math.inf, math.nan)

    from scipy import integrate  # half a second of every start otherwise

    least = float(rates.min())  # the unit of time: rates may differ by many magnitudes
    rates = rates / least

    def survival(time: float) -> float:
        return -math.expm1(float(np.sum(np.log(-np.expm1(-rates * time))))) if time else 1.0

    # For the same reason the logarithm of the time is what is integrated over.
    spread = (math.log(1e-12 / rates.sum()), math.log(800 / rates.min()))
    moment = lambda power: integrate.quad(  # noqa: E731
        lambda u: math.exp(power * u) * survival(math.exp(u)), *spread, limit=500, epsabs=0
    )[0]
    mean, second = moment(1), 2 * moment(2)
    return Lifetime(mean / least, math.sqrt(max(0.0, second - mean**2 - mean * least)) / least)


def retention(n_slices: int, orders: np.ndarray, keep: int, requests: int) -> float:
    """The probability that some order keeps its first slices; exact, by inclusion and exclusion.

    Args:
        n_slices: L.
        orders: [B, L], of one shard.
        keep: k, 0 to L: the stages that an order must have left.
        requests: r, uniform over the slices of this shard.

    Raises:
        ValueError: orders that are no permutations, a number out of range, or so many different
            prefixes that there are more than 2^20 unions of them.
    """
    # Python's integers: NumPy's would overflow below.
    n_slices, keep, requests = map(operator.index, (n_slices, keep, requests))
    orders = orders_.check(orders, n_slices)
    if orders.ndim != 2:
        raise ValueError(f"orders have shape {list(orders.shape)}; [B, L], of one shard, is needed")
    if not 0 <= keep <= n_slices:
        raise ValueError(f"keep is {keep}; 0 to {n_slices} are allowed")
    if requests < 0:
        raise ValueError(f"requests is {requests}; it must be at least 0")
    prefixes = {sum(1 << int(s) for s in order[:keep]) for order in orders}
    signs: dict[int, int] = {}  # of every union of prefixes, how often it counts
    for prefix in sorted(prefixes):
        new = {prefix: 1}
        for union, sign in signs.items():
            new[union | prefix] = new.get(union | prefix, 0) - sign
        for union, sign in new.items():
            signs[union] = signs.get(union, 0) + sign
        if len(signs) > _UNIONS:
            raise ValueError(f"retention: {len(prefixes)} different prefixes have too many unions")
    # A union of u slices is missed by all requests with probability (1 - u / L)^r: whole numbers.
    count = sum(sign * (n_slices - union.bit_count()) ** requests for union, sign in signs.items())
    return count / n_slices**requests


def retention_if_independent(n_slices: int, budget: int, keep: int, requests: int) -> float:
    """1 - (1 - (1 - k/L)^r)^B', B' = min(B, L! / (L-k)!): as if orders were independent (Eq. 20).

    The paper's estimate: equal to `retention` for one order, and a lower bound for the four cyclic
    orders of four slices, but not in general (L = B = 5, k = 2, r = 7: 0.1318 against 0.1323).

    Raises:
        ValueError: a number out of range.
    """
    sizes = (n_slices, budget, keep, requests)
    n_slices, budget, keep, requests = map(operator.index, sizes)
    if not 0 <= keep <= n_slices:
        raise ValueError(f"keep is {keep}; 0 to {n_slices} are allowed")
    if budget < 1 or requests < 0:
        raise ValueError(f"budget is {budget} and requests {requests}; at least 1 and 0 needed")
    one = (1 - keep / n_slices) ** requests
    return 1 - (1 - one) ** min(budget, math.perm(n_slices, keep))


def firsts(orders: np.ndarray) -> np.ndarray:
    """The slices that come first in some order, bool [m, L]; a shard dies once all are hit."""
    first = np.zeros((orders.shape[0], orders.shape[2]), bool)
    np.put_along_axis(first, orders[..., 0], True, axis=1)
    return first


def checked(orders: np.ndarray, prior: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Orders [m, B, L], and a prior [m, L] with sum 1."""
    orders = orders_.check(orders)
    if orders.ndim != 3:
        raise ValueError(f"orders have shape {list(orders.shape)}; [m, B, L] is needed")
    shape = (orders.shape[0], orders.shape[2])
    if prior is None:
        return orders, np.full(shape, 1 / (shape[0] * shape[1]))
    prior = np.asarray(prior, float)
    if prior.shape != shape:
        raise ValueError(f"prior has shape {list(prior.shape)}; {list(shape)} is needed")
    total = prior.sum()
    if not np.isfinite(prior).all() or (prior < 0).any() or abs(total - 1) > 1e-6:
        raise ValueError(f"prior has the sum {total:g}; probabilities with the sum 1 are needed")
    return orders, prior / total
