"""A method over a stream as compiled programs: its start, its warm-up, blocks of batches.

The two stages have one count of steps: those of the warm-up are 0 to W - 1, those of the stream
follow. The key of a step depends on that count alone, so a run that is cut into blocks, stopped and
resumed has the same bits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import loop, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.data import Joined
from jaxunlearn.tta import deployment as deployments
from jaxunlearn.tta import masked
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.feed import Feed
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network
from jaxunlearn.tta.replay import replayed

Shared = dict[str, Any]


def begin(method: Method, deployment: Deployment, key: Key) -> tuple[TrainState, Shared]:
    """The state after the start and the warm-up, and what the steps read.

    `shared["initial"]` is that state, to which a reset goes back.
    """
    if method.needs_source and deployment.source is None:
        raise ValueError(
            f"source is None; {type(method).__name__} needs images and labels of the source"
        )
    if method.reads_features:
        deployments.n_features(deployment)
    state, shared = method.start(deployment, fold(key, "start"))
    state = jax.tree.map(jnp.copy, state)  # to be donated, while the caller's stays valid
    n_steps = method.warm_up_steps(deployment.batch_size)
    if n_steps:
        data = _sources(deployment)
        state = _warm_up(
            state, shared, data, key, method=method, network=deployment.network, n_steps=n_steps
        )
    return state, shared | {"initial": jax.tree.map(jnp.copy, state)}


def data(method: Method, deployment: Deployment, images: Any, tables: Shared) -> Joined:
    """What the steps of a stream read; see `Feed`."""
    first = method.warm_up_steps(deployment.batch_size)
    tables = {name: jnp.asarray(table) for name, table in tables.items() if name != "place"}
    sources: dict[str, Any] = {"test": Feed(jnp.asarray(images), tables, first)}
    if method.replays:
        sources |= _sources(deployment).sources
    return Joined(sources)


def _sources(deployment: Deployment) -> Joined:
    assert deployment.source is not None
    return Joined({"source": replayed(deployment.source, deployment.batch_size)})


@functools.partial(jax.jit, static_argnames=("method", "network", "n_steps"), donate_argnums=0)
def _warm_up(
    state: TrainState,
    shared: Shared,
    data: Joined,
    key: Key,
    *,
    method: Method,
    network: Network,
    n_steps: int,
) -> TrainState:
    state, _ = loop.scan(method.warm_up(network, n_steps), state, shared, data, key, n_steps)
    return state


def with_tables(data: Joined, tables: Shared) -> Joined:
    """The same images in another order."""
    test = dataclasses.replace(data.sources["test"], tables=tables)
    return Joined(data.sources | {"test": test})


def steps(
    state: TrainState,
    shared: Shared,
    data: Joined,
    key: Key,
    first: Any,
    *,
    method: Method,
    network: Network,
    n_steps: int,
) -> tuple[TrainState, jax.Array]:
    """Some batches of a stream; pure, to be compiled: `advance` is.

    Args:
        state: the state.
        shared: see `begin`.
        data: see `data`.
        key: the run's key.
        first: number of the first batch in the stream, may be traced.
        method: the method.
        network: the network.
        n_steps: number of batches.

    Returns:
        The state, and the logits [n_steps, B, K], or [n_steps, K] of windows.
    """
    step = stream_step(method, network)
    start = first + data.sources["test"].first
    state, metrics = loop.scan(step, state, shared, data, key, n_steps, first=start)
    return state, metrics["logits"]


advance = jax.jit(steps, static_argnames=("method", "network", "n_steps"), donate_argnums=0)


def stream_step(method: Method, network: Network) -> Step:
    """The method's step on batches as `data` gives them, with resets and windows."""
    step = method.step(network)

    def adapt(state, shared, batch, key):
        state, metrics = step(state, shared, batch, key)
        return state, metrics["logits"]

    def look(state, shared, batch, key):
        del key
        return state, method.predict(network, state, shared, batch)

    def whole(state, shared, batch, key):
        batch = batch["test"] | {name: part for name, part in batch.items() if name != "test"}
        if "reset" in batch:
            anew = method.restored(state, shared["initial"])
            state = masked.where(batch["reset"], anew, state)
        if "update" not in batch:
            state, logits = adapt(state, shared, batch, key)
            return state, {"logits": logits}
        state, logits = jax.lax.cond(batch["update"], adapt, look, state, shared, batch, key)
        return state, {"logits": logits[batch["newest"]]}

    return whole


def adapted(state: TrainState, shared: Shared) -> tree.Tree:
    """All parameters of the student."""
    return tree.combine(state.params, shared["frozen"])
