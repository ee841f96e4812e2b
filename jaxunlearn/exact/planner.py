"""What a plan costs and how long it lasts, before anything is trained (S3T, Table 3, Lemma 1)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.core import adapters, tree
from jaxunlearn.exact import lifetimes
from jaxunlearn.exact.plan import Plan
from jaxunlearn.exact.prefixes import check_plan, window
from jaxunlearn.exact.sliceable import Network


class Outlook(NamedTuple):
    """What to expect of a plan.

    Attributes:
        n_shards: m.
        n_slices: L.
        budget: B.
        requests: expected number until all shards are dead, under uniform requests.
        std: standard deviation of that number.
        gain: over one order (SISA).
        stages: stages that are trained; a prefix that several orders share is trained once.
        passes: reads of an example by a step, relative to one model that reads each example once
            an epoch: the cost of training in passes over all data.
        bytes: adapters and heads on disk, the base apart.
    """

    n_shards: int
    n_slices: int
    budget: int
    requests: float
    std: float
    gain: float
    stages: int
    passes: float
    bytes: int


def outlook(plan: Plan, network: Network, base: Any) -> Outlook:
    """Looks ahead.

    Args:
        plan: the plan.
        network: the network.
        base: its parameters, or their shapes (`jax.eval_shape` of its `init`).

    Raises:
        ValueError: more layers than the network has.
    """
    check_plan(network, plan)
    all_orders = lifetimes.lifetime(plan.table)
    one_order = lifetimes.lifetime(plan.table[:, :1])
    by_level = [len(plan.prefixes(level)) for level in range(1, plan.n_slices + 1)]
    reads = sum(n * level for level, n in enumerate(by_level, 1))
    return Outlook(
        plan.n_shards,
        plan.n_slices,
        plan.budget,
        all_orders.mean,
        all_orders.std,
        all_orders.mean / one_order.mean,
        sum(by_level),
        reads / (plan.n_shards * plan.n_slices),
        plan.n_shards * plan.budget * _bytes(plan, network, base),
    )


def combinations(
    shards: Sequence[int], slices: Sequence[int], budgets: Sequence[int]
) -> Iterator[dict[str, int]]:
    """All of them that exist: B up to L!."""
    for m, n_slices, budget in itertools.product(shards, slices, budgets):
        if n_slices > 20 or budget <= math.factorial(n_slices):
            yield {"shards": m, "slices": n_slices, "budget": budget}


def _bytes(plan: Plan, network: Network, base: Any) -> int:
    """Of one order."""
    last = network.n_layers

    def shapes(base: Any) -> Any:
        fresh = window(network, base, plan, last - plan.n_adapted, last, jax.random.key(0))
        return adapters.split(fresh)[0]

    leaves = list(tree.named(jax.eval_shape(shapes, base)).values())
    if network.trains_head:
        leaves += plan.n_slices * list(tree.named(base["head"]).values())
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
