"""SSD: Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic
Dampening, AAAI 2024.
"""  # noqa: D205

import jax
import jax.numpy as jnp

from jaxunlearn.core import losses
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn._problem import Problem, Unlearned

_CHUNK = 64  # examples whose gradients are held at once


def ssd(model: Model, params: Tree, stats: Tree, problem: Problem, key, *, alpha, lam) -> Unlearned:
    """Shrinks the parameters that matter much more to the forget set than to the training set.

    Importance is the diagonal of the empirical Fisher information, the mean of squared
    *per-example* gradients (squares of batch gradients, as some code has them, are not that).
    Where I_F > alpha * I_D a parameter is multiplied by min(1, lam * I_D / I_F). No training
    follows.
    """
    del key
    everything = jnp.concatenate([problem.retain, problem.forget])
    importance_forget = _importance(model, params, stats, problem, problem.forget)
    importance_all = _importance(model, params, stats, problem, everything)

    def dampen(value, forget, all_):
        factor = jnp.minimum(1.0, lam * all_ / jnp.where(forget > 0, forget, 1.0))
        return jnp.where(forget > alpha * all_, factor * value, value)

    dampened = jax.tree.map(dampen, params, importance_forget, importance_all)
    n_gradients = problem.forget.shape[0] + everything.shape[0]
    return Unlearned(dampened, stats, jnp.zeros(0), n_gradients)


def _importance(model: Model, params: Tree, stats: Tree, problem: Problem, indices) -> Tree:
    """Mean of squared per-example gradients of the cross-entropy, eval mode."""

    def loss(params, x, y):
        logits, _ = model.apply(params, stats, x[None])
        return losses.cross_entropy(logits[0], y)

    def squares(index):
        grads = jax.grad(loss)(params, problem.x[index], problem.y[index])
        return jax.tree.map(jnp.square, grads)

    def add(total, chunk):
        rows, present = chunk
        of_rows = jax.vmap(squares)(rows)
        weighted = jax.tree.map(lambda s: jnp.tensordot(present, s, axes=1), of_rows)
        return jax.tree.map(jnp.add, total, weighted), None

    n = indices.shape[0]
    n_chunks = -(-n // _CHUNK)
    padded = jnp.resize(indices, n_chunks * _CHUNK).reshape(n_chunks, _CHUNK)
    present = (jnp.arange(n_chunks * _CHUNK) < n).astype(jnp.float32).reshape(n_chunks, _CHUNK)
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (padded, present))
    return jax.tree.map(lambda t: t / n, total)
