"""Several runs of one method side by side: other orders of images, other draws, one program."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import tree
from jaxunlearn.core.keys import Key
from jaxunlearn.tta import adaptation
from jaxunlearn.tta.adaptation import Shared
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network

Lanes = dict[str, Any]


def begin(method: Method, deployment: Deployment, keys: Sequence[Key]) -> Lanes:
    """The runs before their first batch.

    Returns:
        `state`, and of what the steps read `shared` and `initial`, with a leading axis of runs;
        and `frozen`, the parameters that do not train, once.
    """
    begun = [adaptation.begin(method, deployment, key) for key in keys]
    frozen = begun[0][1]["frozen"]
    own = [{name: part for name, part in shared.items() if name != "frozen"} for _, shared in begun]
    return {"state": tree.stack(state for state, _ in begun), **tree.stack(own), "frozen": frozen}


@functools.partial(
    jax.jit, static_argnames=("method", "network", "n_steps"), donate_argnames="state"
)
def advance(
    state: tree.Tree,
    shared: Shared,
    frozen: tree.Tree,
    data: Any,
    tables: Shared,
    keys: Key,
    first: Any,
    *,
    method: Method,
    network: Network,
    n_steps: int,
) -> tuple[tree.Tree, dict[str, jax.Array]]:
    """Some batches of all runs as one program: one run after the other on CPUs, else together.

    A CPU's convolutions with a kernel of their own for each run would be grouped ones, which are
    slow.

    Args:
        state: of all runs, leading axis S; donated.
        shared: `shared` and `initial` of all runs.
        frozen: the parameters that do not train.
        data: what the steps read, see `adaptation.data`, with the tables of one run.
        tables: of all runs, [S, T, ...].
        keys: of all runs, [S].
        first: number of the first batch in the stream.
        method: the method.
        network: the network.
        n_steps: number of batches.

    Returns:
        The states, and of every run and batch (leading axes S, n_steps) the `predictions`, the
        `entropy` of each, whether the logits are all `finite`, and the `drift` [S, 1]: how far the
        parameters that train are from where they started, relative to their norm.
    """

    def one(run: Any) -> Any:
        state, own, tables, key = run
        reads = own | {"frozen": frozen}
        fed = adaptation.with_tables(data, tables)
        how = {"method": method, "network": network, "n_steps": n_steps}
        state, logits = adaptation.steps(state, reads, fed, key, first, **how)
        return state, _seen(logits) | {"drift": _drift(state.params, own["initial"].params)[None]}

    runs = (state, shared, tables, keys)
    return jax.lax.map(one, runs) if jax.default_backend() == "cpu" else jax.vmap(one)(runs)


def _seen(logits: jax.Array) -> dict[str, jax.Array]:
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0), axis=-1)
    finite = jnp.isfinite(logits).all(axis=tuple(range(1, logits.ndim)))
    return {"predictions": logits.argmax(-1), "entropy": entropy, "finite": finite}


def _drift(params: tree.Tree, initial: tree.Tree) -> jax.Array:
    def squares(a: tree.Tree) -> jax.Array:
        return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(a)), jnp.zeros(()))

    moved = squares(jax.tree.map(jnp.subtract, params, initial))
    return jnp.sqrt(moved / jnp.maximum(squares(initial), 1e-30))
