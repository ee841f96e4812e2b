"""What a deletion leaves of an ensemble of shards, each trained in several orders (S3T, Alg. 4).

A request names one example; the whole slice that holds it is given up. Of an order in which that
slice comes p-th the first p - 1 stages stay. Every shard answers with its longest order, the system
with the mean over its living shards. Nothing is trained, and nothing but this bookkeeping changes.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from jaxunlearn.exact import orders as orders_
from jaxunlearn.exact.lifetimes import (
    Lifetime,
    expected_requests,
    lifetime,
    retention,
    retention_if_independent,
    uniform,
)
from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.exact.simulation import depths as depths
    from jaxunlearn.exact.simulation import requests as requests
    from jaxunlearn.exact.simulation import simulate as simulate

__all__ = [
    "Lifetime",
    "Served",
    "combine",
    "expected_requests",
    "lifetime",
    "needs_retraining",
    "retention",
    "retention_if_independent",
    "served",
    "surviving",
    "uniform",
]

# Streams of requests need JAX; what only reads the stages that are left does not load it.
__getattr__, _ = exports(
    "jaxunlearn.exact", (), dict.fromkeys(("depths", "requests", "simulate"), "simulation")
)


class Served(NamedTuple):
    """What each shard answers with.

    Attributes:
        order: int64 [m], the order with the most stages left, the first of several.
        depth: int64 [m], its stages; 0 if the shard is dead.
    """

    order: np.ndarray
    depth: np.ndarray


def surviving(orders: np.ndarray, deleted: np.ndarray) -> np.ndarray:
    """Stages left of every order, those before its first deleted slice: int64 [m, B].

    Args:
        orders: [m, B, L].
        deleted: bool [m, L], slices that lost an example.

    Raises:
        ValueError: orders that are no permutations, or another shape.
    """
    orders = orders_.check(orders)
    deleted = np.asarray(deleted, bool)
    if orders.ndim != 3 or deleted.shape != (orders.shape[0], orders.shape[2]):
        raise ValueError(
            f"orders have shape {list(orders.shape)} and deleted {list(deleted.shape)}; "
            "[m, B, L] and [m, L] are needed"
        )
    hit = np.take_along_axis(deleted[:, None, :], orders, axis=-1)
    return (np.cumsum(hit, axis=-1) == 0).sum(-1)


def served(left: np.ndarray) -> Served:
    """The longest order of each shard, from `surviving` [m, B]."""
    order = np.argmax(left, axis=1)
    return Served(order, left[np.arange(len(left)), order])


def combine(outputs: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The mean of outputs [m, ...] over living shards (bool [m]).

    Raises:
        ValueError: another shape, or no shard is alive: there is nothing that may answer.
    """
    outputs, alive = np.asarray(outputs), np.asarray(alive, bool)
    if alive.shape != outputs.shape[:1]:
        raise ValueError(
            f"alive has shape {list(alive.shape)}; outputs {list(outputs.shape)} need one a shard"
        )
    if not alive.any():
        raise ValueError("no shard is alive: the ensemble must be trained again")
    return np.mean(outputs[alive], axis=0)


def needs_retraining(
    left: np.ndarray, *, trigger: Literal["all", "any"] = "all", depth: int = 1
) -> bool:
    """Whether it is time to train again.

    Args:
        left: [m, B], see `surviving`.
        trigger: "all": no shard has an order of `depth` stages (the paper's, with depth 1), or
            "any": some shard has none.
        depth: stages that an order must have to count; larger is stricter.

    Raises:
        ValueError: another trigger, or a depth below 1.
    """
    if trigger not in ("all", "any") or depth < 1:
        raise ValueError(
            f"trigger is {trigger!r} and depth {depth}; 'all' or 'any', and at least 1, are needed"
        )
    gone = served(left).depth < depth
    return bool(gone.all() if trigger == "all" else gone.any())
