"""Unlearning with a retain set: the extension of the linear theory, and its phase diagrams."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxunlearn.theory import _linear_checks as check
from jaxunlearn.theory._linear_checks import Array, float64

# Relative size below which an eigenvalue or a coordinate is rounding error.
NOTHING = 1e-12


class Phase(NamedTuple):
    """Where divergence is fast, slow or absent.

    Attributes:
        rate: growth of log |Delta_t| per step in the long run (`growth_rate`).
        distance: distance of the two models after a number of steps; infinite where float64 ends.
    """

    rate: Array
    distance: Array


@float64
def difference(
    delta: ArrayLike,
    x_forget: ArrayLike,
    lr: ArrayLike,
    steps: ArrayLike,
    x_retain: ArrayLike | None = None,
    retain_weight: ArrayLike = 0.0,
) -> Array:
    """Delta_t = (I + M_U - lambda M_R)^t Delta_0, for any number of steps at once.

    Args:
        delta: difference of two models before unlearning, [d].
        x_forget: [k, d].
        lr: step size, positive.
        steps: how many steps, a number or an array of numbers.
        x_retain: [n, d], the retain set whose mean squared error is held down; none by default.
        retain_weight: lambda, at least 0.

    Returns:
        [*steps.shape, d].

    Raises:
        ValueError: shapes that do not fit; `lr` that is not positive; steps that are negative or
            not whole; `retain_weight` below 0, or other than 0 without a retain set.
    """
    delta, x_forget, x_retain, weight = check.with_retain(delta, x_forget, x_retain, retain_weight)
    return _difference(
        delta, x_forget, x_retain, check.positive("lr", lr), weight, check.whole_steps(steps)
    )


@float64
def growth_rate(
    delta: ArrayLike,
    x_forget: ArrayLike,
    lr: ArrayLike,
    x_retain: ArrayLike | None = None,
    retain_weight: ArrayLike = 0.0,
) -> Array:
    """The limit of log |Delta_t| / t: two models drift apart if, and only if, it is positive.

    It is the largest log |1 + e| over those eigenvalues e of M_U - lambda M_R in whose directions
    Delta_0 has a part. Divergence is e > 0; or e < -2, a step too long for the retain set.

    Arguments and errors are those of `difference`.

    Returns:
        A number; exactly 0 if a part of the difference stays and none grows, -infinity if there is
        no difference.
    """
    delta, x_forget, x_retain, weight = check.with_retain(delta, x_forget, x_retain, retain_weight)
    return _growth_rate(delta, x_forget, x_retain, check.positive("lr", lr), weight)


@float64
def phase_diagram(
    delta: ArrayLike,
    x_forget: ArrayLike,
    x_retain: ArrayLike,
    x_test: ArrayLike,
    lr: ArrayLike,
    retain_weight: ArrayLike,
    steps: ArrayLike,
) -> Phase:
    """Growth rate and distance for all combinations of problems, step sizes and retain weights.

    One vmapped program. Problems may differ in anything that is written into their rows, such as
    the overlap of forget and retain set, or the number of forget rows: k of K rows that are not
    zero, times sqrt(K / k), are a forget set of k rows.

    Args:
        delta: differences of two models before unlearning, [problems, d].
        x_forget: [problems, k, d].
        x_retain: [n, d], common to all.
        x_test: [m, d], common to all.
        lr: step sizes, [lrs].
        retain_weight: [weights].
        steps: at which the distance is taken, one number.

    Returns:
        rate and distance, each [problems, lrs, weights].

    Raises:
        ValueError: shapes that do not fit; step sizes that are not positive; weights below 0; a
            number of steps that is negative or not whole.
    """
    deltas, forget = jnp.asarray(delta, jnp.float64), jnp.asarray(x_forget, jnp.float64)
    if deltas.ndim != 2 or forget.ndim != 3 or forget.shape[::2] != deltas.shape:
        raise ValueError(
            f"delta is {list(deltas.shape)} and x_forget {list(forget.shape)}; "
            "[problems, d] and [problems, k, d] are needed"
        )
    retain = check.rows("x_retain", x_retain, deltas.shape[1])
    test = check.rows("x_test", x_test, deltas.shape[1])
    lrs = jnp.atleast_1d(check.positive("lr", lr))
    weights = jnp.atleast_1d(check.not_negative("retain_weight", retain_weight))
    step = check.whole_steps(steps)
    if lrs.ndim != 1 or weights.ndim != 1 or step.ndim:
        raise ValueError(
            f"lr is {list(lrs.shape)}, retain_weight {list(weights.shape)} and steps "
            f"{list(step.shape)}; two lists and one number are needed"
        )
    return _phase_diagram(deltas, forget, retain, test, lrs, weights, step)


def _modes(
    x_forget: jax.Array, x_retain: jax.Array | None, retain_weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [q] of (M_U - lambda M_R) / lr and their vectors [d, q], but for the null space.

    It is Z' S Z with all rows in Z and their weights and signs in the diagonal S. With Z' = Q R its
    eigenvectors are those of the small R S R', times Q.
    """
    rows, weights = x_forget, jnp.full(len(x_forget), 2 / len(x_forget))
    if x_retain is not None:
        penalty = jnp.full(len(x_retain), -2 / len(x_retain)) * retain_weight
        rows, weights = jnp.concatenate([rows, x_retain]), jnp.concatenate([weights, penalty])
    q, r = jnp.linalg.qr(rows.T)
    values, vectors = jnp.linalg.eigh((r * weights) @ r.T)
    return values, q @ vectors


def _moved(modes: tuple[jax.Array, jax.Array], delta, lr, steps) -> jax.Array:
    values, vectors = modes
    growth = jnp.power(1 + lr * values, steps[..., None]) - 1
    return delta + (growth * (delta @ vectors)) @ vectors.T


def _rate(modes: tuple[jax.Array, jax.Array], delta, lr) -> jax.Array:
    values, vectors = modes
    # Dependent rows leave eigenvalues that are 0 up to rounding; they must not count as growth.
    e = jnp.where(jnp.abs(values) <= NOTHING * jnp.abs(values).max(), 0.0, lr * values)
    logs = 0.5 * jnp.log1p(jnp.maximum(e * (2 + e), -1.0))  # log |1 + e|, precise near e = 0
    coordinates = delta @ vectors
    least = NOTHING * jnp.linalg.norm(delta)
    rest = jnp.linalg.norm(delta - vectors @ coordinates)  # outside of all rows: stays as it is
    moving = jnp.max(logs, where=jnp.abs(coordinates) > least, initial=-jnp.inf)
    return jnp.maximum(moving, jnp.where(rest > least, 0.0, -jnp.inf))


def mean_square(delta: jax.Array, x_test: jax.Array) -> jax.Array:
    return jnp.square(delta @ x_test.T).mean(-1)


@jax.jit
def _difference(delta, x_forget, x_retain, lr, retain_weight, steps) -> jax.Array:
    return _moved(_modes(x_forget, x_retain, retain_weight), delta, lr, steps)


@jax.jit
def _growth_rate(delta, x_forget, x_retain, lr, retain_weight) -> jax.Array:
    return _rate(_modes(x_forget, x_retain, retain_weight), delta, lr)


@jax.jit
def _phase_diagram(deltas, x_forget, x_retain, x_test, lrs, weights, steps) -> Phase:
    def point(delta, forget, lr, weight):
        # One eigenproblem for all step sizes and one QR for all weights: vmap leaves them outside.
        modes = _modes(forget, x_retain, weight)
        return Phase(_rate(modes, delta, lr), mean_square(_moved(modes, delta, lr, steps), x_test))

    over_lrs = jax.vmap(point, (None, None, 0, None))
    over_weights = jax.vmap(over_lrs, (None, None, None, 0), out_axes=1)
    return jax.vmap(over_weights, (0, 0, None, None))(deltas, x_forget, lrs, weights)
