"""Streams of deletion requests, many at once (S3T, section 4).

What was deleted is a set of slices, kept as words of 32 bits: all slices of the system to know when
its last shard dies, those of one shard to know how many stages of each order are left.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import ensemble
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.exact import orders as orders_
from jaxunlearn.exact.lifetimes import checked, firsts

_BLOCK = 4096  # streams that are computed together; their words stay in the cache
_TURN = 8  # requests between two looks at whether all streams are over


def simulate(
    orders: np.ndarray,
    prior: np.ndarray | None,
    n_streams: int,
    key: Key,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Requests until all shards are dead, in independent streams.

    Args:
        orders: [m, B, L].
        prior: [m, L], the probability that a request hits each slice, sum 1 over all; uniform if
            None. Kept to 2^-24.
        n_streams: number of streams.
        key: a key, typed or raw.
        mesh: devices that share the streams; the counts do not depend on it.

    Returns:
        int64 [n_streams], the request that kills the last shard included.

    Raises:
        ValueError: orders that are no permutations, a prior that is none, or one under which a
            slice that comes first is never hit: its shard would live for ever.
    """
    orders, rates = checked(orders, prior)
    n_streams = operator.index(n_streams)
    if n_streams < 1:
        raise ValueError(f"n_streams is {n_streams}; it must be at least 1")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    needed = firsts(orders)
    if (rates[needed] < 2.0**-24).any():
        raise ValueError(
            f"prior: a slice that comes first has probability {rates[needed].min():g}; "
            "2^-24 is the least"
        )
    n_blocks = -(-n_streams // _BLOCK)
    shared: dict[str, Any] = {"needed": _words(needed.ravel())}
    if prior is not None:
        shared |= _alias(rates.ravel())
    n_devices = 1 if mesh is None else mesh.shape["models"]
    counts = ensemble.run(
        _lifetimes(rates.size),
        shared,
        {"number": np.arange(n_blocks), "key": jnp.broadcast_to(key, n_blocks)},
        width=-(-n_blocks // n_devices),
        mode="map",
        mesh=mesh,
    )["requests"]
    return counts.ravel()[:n_streams].astype(np.int64)


@functools.lru_cache(maxsize=64)  # the same function is the same program, compiled once
def _lifetimes(n_slices: int):
    """The lifetimes of a block of streams over so many slices in all."""

    def one(shared, member):
        key = fold(member["key"], "streams", member["number"])
        start, step = jax.random.bits(key, (2, _BLOCK))
        needed = list(shared["needed"])  # words, each for all streams

        def alive(deleted: list[jax.Array]) -> jax.Array:
            missing = [
                (word & all_of) != all_of for word, all_of in zip(deleted, needed, strict=True)
            ]
            return functools.reduce(jnp.logical_or, missing)

        def turn(now):
            deleted, requests, number = now
            for _ in range(_TURN):  # one program of elementwise operations
                requests = requests + alive(deleted)
                word = _mixed(start + number * (step | 1))
                hits = _bits(_draw(word, n_slices, shared), n_slices)
                deleted = [word | hit for word, hit in zip(deleted, hits, strict=True)]
                number = number + 1
            return deleted, requests, number

        nothing = [jnp.zeros(_BLOCK, jnp.uint32) for _ in needed]
        first = (nothing, jnp.zeros(_BLOCK, jnp.int32), jnp.uint32(0))
        return {"requests": jax.lax.while_loop(lambda now: alive(now[0]).any(), turn, first)[1]}

    return one


def requests(
    n_shards: int, n_slices: int, prior: np.ndarray | None, shape: tuple[int, ...], key: Key
) -> jax.Array:
    """Slices that requests hit, int32 `shape`: slice s of shard a has the number a L + s.

    Args:
        n_shards: m.
        n_slices: L.
        prior: [m, L] with sum 1; uniform if None.
        shape: shape of the result.
        key: a typed key.
    """
    anyhow = np.broadcast_to(np.arange(n_slices), (n_shards, 1, n_slices))
    _, rates = checked(anyhow, prior)
    table = {} if prior is None else _alias(rates.ravel())
    return _draw(jax.random.bits(key, shape), rates.size, table)


def depths(orders: np.ndarray, hits: jax.Array) -> jax.Array:
    """Stages that are left of every order after each request, int32 [..., R, m, B].

    An order keeps the stages before its first deleted slice.

    Args:
        orders: [m, B, L], L at most 32.
        hits: [..., R], a stream of `requests` along the last axis.

    Raises:
        ValueError: orders that are no permutations, or more than 32 slices.
    """
    orders = orders_.check(orders)
    n_shards, _, n_slices = orders.shape
    if n_slices > 32:
        raise ValueError(f"depths: orders have {n_slices} slices; 32 is the most")
    prefixes = jnp.asarray(np.bitwise_or.accumulate(np.uint32(1) << orders.astype(np.uint32), -1))

    def request(deleted: jax.Array, hit: jax.Array) -> tuple[jax.Array, jax.Array]:
        shard, bit = hit // n_slices, jnp.uint32(1) << (hit % n_slices).astype(jnp.uint32)
        is_hit = jnp.arange(n_shards) == shard[..., None]
        deleted = jnp.where(is_hit, deleted | bit[..., None], deleted)
        left = (prefixes & deleted[..., None, None]) == 0
        return deleted, left.sum(-1, dtype=jnp.int32)

    start = jnp.zeros((*hits.shape[:-1], n_shards), jnp.uint32)
    _, left = jax.lax.scan(request, start, jnp.moveaxis(hits, -1, 0))
    return jnp.moveaxis(left, 0, -3)


def _mixed(counter: jax.Array) -> jax.Array:
    """Words from counters with a step of their own, as SplitMix (Steele et al. 2014) makes them.

    Statistically sound and many times as fast as a cryptographic generator, which only draws where
    each stream starts and its step; the multipliers are Wellons's for 32 bits.
    """
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        counter = (counter ^ (counter >> shift)) * jnp.uint32(multiplier)
    return counter ^ (counter >> 16)


def _draw(bits: jax.Array, n: int, table: dict[str, Any]) -> jax.Array:
    """Numbers 0 .. n-1 from random words: equally likely, or by Walker's alias table."""
    place = (bits >> 8).astype(jnp.float32) * (n * 2.0**-24)
    column = place.astype(jnp.int32)
    if "threshold" not in table:
        return column
    keeps = place - column < table["threshold"][column]
    return jnp.where(keeps, column, table["alias"][column])


def _alias(rates: np.ndarray) -> dict[str, np.ndarray]:
    """Column i is drawn with probability 1/n, and stands for i or else for its alias."""
    share = rates * len(rates)
    threshold, alias = np.ones(len(rates), np.float32), np.arange(len(rates), dtype=np.int32)
    small, large = list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))
    while small and large:
        i, j = small.pop(), large.pop()
        threshold[i], alias[i] = share[i], j
        share[j] -= 1 - share[i]
        (small if share[j] < 1 else large).append(j)
    return {"threshold": threshold, "alias": alias}


def _words(chosen: np.ndarray) -> np.ndarray:
    """A set of slices as uint32 [words]."""
    padded = np.pad(chosen, (0, -len(chosen) % 32)).reshape(-1, 32)
    return (padded.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)


def _bits(numbers: jax.Array, n: int) -> jax.Array:
    """One-element sets, uint32 [words, ...]."""
    bit = jnp.uint32(1) << (numbers & 31).astype(jnp.uint32)
    words = jnp.arange(-(-n // 32)).reshape(-1, *(1,) * numbers.ndim)
    return jnp.where(words == numbers >> 5, bit, jnp.uint32(0))
