"""The lasso of many targets at once, on the Gram matrix: accelerated proximal gradient steps.

Every target has its own penalty; all share the product with the Gram matrix, which is the work.
float32 finds the support; `polish` then solves for the weights on it in float64.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

_ROUNDS = 20  # of polishing
_RESIDUAL = 1e-9  # that polishing leaves, in units of the largest correlation
_CHECK_EVERY = 10  # steps between looks at the optimality conditions


class _State(NamedTuple):
    weights: jax.Array  # [n, T]
    ahead: jax.Array  # [n, T], the extrapolated point
    momentum: jax.Array  # [T]
    worst: jax.Array  # [], violation of the optimality conditions relative to the tolerance
    steps: jax.Array  # []


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product in full float32, on accelerators too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="max_steps")
def solve(
    gram: jax.Array,
    correlation: jax.Array,
    l1: jax.Array,
    step: float,
    start: jax.Array,
    tolerance: jax.Array,
    max_steps: int = 20000,
) -> tuple[jax.Array, jax.Array]:
    """Minimises w'Gw / 2 - c'w + l1 |w|_1 for every target (FISTA with restarts by gradient).

    Args:
        gram: G, [n, n].
        correlation: c, [n, T].
        l1: [T].
        step: at most 1 / the largest eigenvalue of G.
        start: where to begin, [n, T].
        tolerance: largest violation of the optimality conditions that is left, [T].
        max_steps: after so many steps it gives up.

    Returns:
        Weights [n, T], and the largest violation divided by the tolerance (above 1: given up).
    """

    def advance(state: _State) -> _State:
        gradient = product(gram, state.ahead) - correlation
        weights = shrink(state.ahead - step * gradient, step * l1)
        move = weights - state.weights
        # O'Donoghue and Candes 2015: begin anew where momentum points uphill.
        uphill = jnp.sum((state.ahead - weights) * move, 0) > 0
        momentum = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        speed = jnp.where(uphill, 0.0, (state.momentum - 1) / momentum)
        return _State(weights, weights + speed * move, momentum, state.worst, state.steps + 1)

    def advance_and_look(state: _State) -> _State:
        state = jax.lax.fori_loop(0, _CHECK_EVERY, lambda _, s: advance(s), state)
        worst = jnp.max(violation(gram, correlation, l1, state.weights) / tolerance)
        return state._replace(worst=worst)

    momentum = jnp.ones_like(l1)
    state = _State(start, start, momentum, jnp.float32(jnp.inf), jnp.int32(0))
    state = jax.lax.while_loop(
        lambda s: (s.worst > 1) & (s.steps < max_steps), advance_and_look, state
    )
    return state.weights, state.worst


def violation(gram, correlation, l1, weights) -> jax.Array:
    """How far each target is from optimal, [T]: the largest entry of the least subgradient."""
    gradient = product(gram, weights) - correlation
    on_support = jnp.abs(gradient + l1 * jnp.sign(weights))
    off_support = jnp.maximum(jnp.abs(gradient) - l1, 0)
    return jnp.max(jnp.where(weights != 0, on_support, off_support), 0)


def polish(
    gram: np.ndarray, correlation: np.ndarray, l1: float, weights: np.ndarray
) -> np.ndarray | None:
    """The exact optimum of one target from a nearby one, in float64.

    On a support with given signs the optimum is a linear system; what leaves it changes sign, what
    joins it violates its optimality condition.

    Args:
        gram: [n, n].
        correlation: [n].
        l1: penalty.
        weights: nearby, [n].

    Returns:
        [n], or None where a few rounds do not find it (a support larger than the rank).
    """
    signs, scale = np.sign(weights), np.abs(correlation).max()
    for _ in range(_ROUNDS):
        on = np.flatnonzero(signs)
        try:
            factor = scipy.linalg.cho_factor(gram[np.ix_(on, on)])
        except np.linalg.LinAlgError:
            return None
        solution = scipy.linalg.cho_solve(factor, correlation[on] - l1 * signs[on])
        gradient = gram[:, on] @ solution - correlation
        if np.abs(gradient[on] + l1 * signs[on]).max(initial=0) > _RESIDUAL * scale:
            return None  # singular but for rounding
        leaving = on[solution * signs[on] <= 0]
        joining = np.flatnonzero((signs == 0) & (np.abs(gradient) > l1 * (1 + 1e-9) + 1e-12))
        if len(leaving) == len(joining) == 0:
            result = np.zeros_like(correlation)
            result[on] = solution
            return result
        signs[joining] = -np.sign(gradient[joining])
        signs[leaving] = 0
    return None


def shrink(x: jax.Array, by: jax.Array) -> jax.Array:
    """Soft-thresholding: towards 0 by so much, and not across it."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)
