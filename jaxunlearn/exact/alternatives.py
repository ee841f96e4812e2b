"""SISA and full retraining behind the same functions, and the requests that SISA was studied under.

Both are plans: SISA (Bourtoule et al. 2021, arXiv 1912.03817) has one order a shard, full
retraining one shard with one slice. `prefixes.train` with what is `known` rolls SISA back to the
checkpoint before a deleted slice, as `Service.repair` does; what differs is when training happens.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key
from jaxunlearn.exact import orders as orders_
from jaxunlearn.exact import plan as plans
from jaxunlearn.exact.lifetimes import firsts


def sisa(n_shards: int, n_slices: int, capacity: int, **settings: Any) -> plans.Plan:
    """One order of every shard's slices; `settings` are those of `Plan`."""
    return plans.make(n_shards, orders_.cyclic(n_slices, 1), capacity, **settings)


def full(n_examples: int, **settings: Any) -> plans.Plan:
    """One model of everything; `settings` are those of `Plan`."""
    return plans.make(1, orders_.cyclic(1, 1), n_examples, **settings)


def retraining_at_once(plan: plans.Plan, hits: Any) -> np.ndarray:
    """Examples read so far by a system that mends every order at each request.

    An order goes back to the stage before the slice that was hit, and trains all later ones again.
    The examples that were deleted are few beside a slice, and are counted still.

    Args:
        plan: the plan; for full retraining that of `full`, to whose one slice all requests go.
        hits: int [..., R], see `simulation.requests`.

    Returns:
        int64 [..., R], steps times batch size since the first request.
    """
    table = plan.table
    reads = np.array([plan.n_steps(level) for level in range(1, plan.n_slices + 1)])
    left = np.cumsum(reads[::-1])[::-1] * plan.recipe.batch_size  # from a stage to the last
    cost = np.zeros((plan.n_shards, plan.n_slices), np.int64)
    for order in range(plan.budget):
        np.add.at(cost, (np.arange(plan.n_shards)[:, None], table[:, order]), left)
    return np.cumsum(cost.ravel()[np.asarray(hits)], axis=-1)


def retraining_when_dead(plan: plans.Plan, hits: Any) -> np.ndarray:
    """Examples read so far by a system that trains everything anew once all shards are dead.

    Prefixes that orders share are trained once. Arguments and result are those of
    `retraining_at_once`.
    """
    whole = sum(
        len(plan.prefixes(level)) * plan.n_steps(level) for level in range(1, plan.n_slices + 1)
    )
    needed = jnp.asarray(firsts(plan.table).ravel())
    deaths = _deaths(needed, jnp.asarray(hits))
    return np.asarray(deaths, np.int64) * whole * plan.recipe.batch_size


@jax.jit
def _deaths(needed: jax.Array, hits: jax.Array) -> jax.Array:
    """How often all needed slices had been hit, starting anew each time: int32 [..., R]."""

    def request(now: tuple[jax.Array, jax.Array], hit: jax.Array):
        missing, count = now
        missing = missing & (jnp.arange(len(needed)) != hit[..., None])
        dead = ~missing.any(-1)
        return (jnp.where(dead[..., None], needed, missing), count + dead), count + dead

    shape = hits.shape[:-1]
    start = (jnp.broadcast_to(needed, (*shape, len(needed))), jnp.zeros(shape, jnp.int32))
    return jnp.moveaxis(jax.lax.scan(request, start, jnp.moveaxis(hits, -1, 0))[1], 0, -1)


def exponential(n_examples: int, shape: tuple[int, ...], key: Key, rate: float | None = None):
    """Requests for examples: the first are likelier, exponentially (SISA, section 6).

    Args:
        n_examples: N.
        shape: shape of the result.
        key: a typed key.
        rate: lambda, -ln 0.05 / N by default, with which the paper's first N hold 95 %. What lies
            beyond N is not drawn.

    Returns:
        int32 numbers of examples; `places` of a store turns them into slices.
    """
    checks.at_least("n_examples", n_examples, 1)
    rate = -math.log(0.05) / n_examples if rate is None else rate
    checks.positive("rate", rate)
    inside = -np.expm1(-rate * n_examples)
    numbers = -jnp.log1p(-jax.random.uniform(key, shape) * inside) / rate
    return jnp.minimum(numbers.astype(jnp.int32), n_examples - 1)


def pareto(n_examples: int, shape: tuple[int, ...], key: Key, a: float = 1.16) -> jax.Array:
    """The same with weights a / (i + 1)^(a + 1), a heavy tail.

    Raises:
        ValueError: an exponent that is not above 0.
    """
    checks.at_least("n_examples", n_examples, 1)
    checks.positive("a", a)
    weights = (1.0 + np.arange(n_examples)) ** (-a - 1)
    return jax.random.choice(key, n_examples, shape, p=jnp.asarray(weights / weights.sum()))
