"""Linear models, trained in stages and unlearned by ascent: the order of stages stays visible.

The linear theory of "On the Impossibility of Retrain Equivalence in Machine Unlearning" (arXiv
2510.16629v2, section 3 and appendix C). A model is theta in R^d and predicts X theta.

- A stage on (X, y) is a proximal ridge from where the last one ended:
  argmin |X theta - y|^2 + mu |theta - theta_before|^2.
- Unlearning U climbs its mean squared error; it sees neither other data nor the past:
  theta <- theta + (2 lr / k) X_U' (X_U theta - y_U).
- Hence two models that were trained in different orders differ after t steps by
  Delta_t = (I + M_U)^t Delta_0, with M_U = (2 lr / k) X_U' X_U: the targets cancel.

Let P project onto the span of the k forget rows and let

    rho = <P Delta_0, M_U P Delta_0> / |P Delta_0|^2,    C = |X_test|_op |(I - P) Delta_0|,
    sigma = the smallest singular value of X_test on that span (of X_test P: the smallest nonzero).

- Theorem 3.1: from step t0 = ceil(log(2 C / (sigma |P Delta_0|)) / log(1 + rho)) on, the mean
  squared difference of the predictions on m test points is at least
  sigma^2 |P Delta_0|^2 (1 + rho)^(2 t) / (4 m).
- Corollary 1: from the later of t0 and log(16 m eps / (sigma^2 |P Delta_0|^2)) / (2 log(1 + rho))
  on, one of the two models is eps away from *any* model, so from the retrained one.

A retain set R with weight lambda, Delta_{t+1} = (I + M_U - lambda M_R) Delta_t, is no way out as
long as the rows of U and R are linearly independent: by Sylvester's law of inertia M_U - lambda M_R
then has k positive eigenvalues, whatever lambda is. The penalty slows divergence down. It stops
divergence only where the forget rows are combinations of retain rows.

Growth is exponential, so everything is float64. Outside of `jax.enable_x64(True)` the functions
give NumPy arrays back, since the next operation on a JAX array would round it to float32. They are
pure: under `jax.enable_x64(True)` they can be jitted, vmapped and differentiated. Shapes are always
checked; values (a step size of 0, dependent forget rows) where they are known, outside of a
transformation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxunlearn.theory import _linear_checks as check
from jaxunlearn.theory._linear_checks import Array, float64
from jaxunlearn.theory._linear_retain import (
    NOTHING,
    Phase,
    difference,
    growth_rate,
    mean_square,
    phase_diagram,
)

__all__ = [
    "Bound",
    "Data",
    "Phase",
    "ascend",
    "difference",
    "distance",
    "divergence_bound",
    "growth_rate",
    "impossible_from_step",
    "mse",
    "phase_diagram",
    "run_order",
    "stage",
]


class Data(NamedTuple):
    """What one stage is trained on.

    Attributes:
        x: inputs, [n, d].
        y: targets, [n].
        mu: how strongly the stage holds on to the model before it, positive.
    """

    x: ArrayLike
    y: ArrayLike
    mu: ArrayLike = 1.0


@float64
def stage(theta: ArrayLike, x: ArrayLike, y: ArrayLike, mu: ArrayLike) -> Array:
    """One stage of training: argmin |x t - y|^2 + mu |t - theta|^2.

    Args:
        theta: the model before, [d].
        x: inputs, [n, d].
        y: targets, [n].
        mu: positive.

    Returns:
        [d], from an n x n system when n < d and a d x d system otherwise.

    Raises:
        ValueError: shapes that do not fit, or `mu` that is not positive.
    """
    theta = check.vector("theta", theta)
    x, y = check.labelled("x", x, "y", y, len(theta))
    return _stage(theta, x, y, check.positive("mu", mu))


@float64
def run_order(theta: ArrayLike, stages: Sequence[Data], order: Sequence[int]) -> Array:
    """Trains stages one after the other.

    Args:
        theta: the model before the first, [d].
        stages: their data.
        order: which stage is the first, the second, ...; stages may be missing or come again.

    Returns:
        [d].

    Raises:
        ValueError: as `stage`, or an order with a number that no stage has.
    """
    if not all(0 <= i < len(stages) for i in order):
        raise ValueError(f"order is {list(order)}; there are stages 0 to {len(stages) - 1}")
    for i in order:
        theta = stage(theta, *stages[i])
    return check.vector("theta", theta)


@jax.jit
def _stage(theta: jax.Array, x: jax.Array, y: jax.Array, mu: jax.Array) -> jax.Array:
    n, d = x.shape
    residual = y - x @ theta
    if n < d:  # X' (X X' + mu I)^-1 = (X' X + mu I)^-1 X'
        return theta + x.T @ _solve(x @ x.T + mu * jnp.eye(n), residual)
    return theta + _solve(x.T @ x + mu * jnp.eye(d), x.T @ residual)


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """By Cholesky: two batched LU solves in one program lock each other up on two CPU cores."""
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right)


@float64
def ascend(
    theta: ArrayLike, x_forget: ArrayLike, y_forget: ArrayLike, lr: ArrayLike, steps: ArrayLike
) -> Array:
    """Gradient ascent on the mean squared error of the forget set, any number of steps at once.

    With X X' = V diag(g) V' and a = 2 lr g / k, step t is at

        theta + (2 lr / k) X' V diag(((1 + a)^t - 1) / a) V' (X theta - y).

    Args:
        theta: the model that unlearns, [d].
        x_forget: inputs, [k, d]; linearly dependent rows are no problem here.
        y_forget: targets, [k].
        lr: step size, positive.
        steps: how many steps, a number or an array of numbers.

    Returns:
        [*steps.shape, d].

    Raises:
        ValueError: shapes that do not fit, `lr` that is not positive, or steps that are negative or
            not whole.
    """
    theta = check.vector("theta", theta)
    x, y = check.labelled("x_forget", x_forget, "y_forget", y_forget, len(theta))
    return _ascend(theta, x, y, check.positive("lr", lr), check.whole_steps(steps))


@float64
def mse(theta: ArrayLike, x: ArrayLike, y: ArrayLike) -> Array:
    """Mean squared error of models theta [..., d] on (x [n, d], y [n]): [...]."""
    theta = check.vectors("theta", theta)
    x, y = check.labelled("x", x, "y", y, theta.shape[-1])
    return jnp.square(theta @ x.T - y).mean(-1)


@jax.jit
def _ascend(
    theta: jax.Array, x: jax.Array, y: jax.Array, lr: jax.Array, steps: jax.Array
) -> jax.Array:
    gram, v = jnp.linalg.eigh(x @ x.T)
    rate = 2 * lr / len(x)
    a, t = rate * gram, steps[..., None]
    # The sum of (1 + a)^s over s < t. Dependent rows have a = 0, up to rounding: t, then.
    flat = gram <= NOTHING * gram[-1]
    total = jnp.where(flat, t, jnp.expm1(t * jnp.log1p(a)) / jnp.where(flat, 1.0, a))
    return theta + rate * (total * (v.T @ (x @ theta - y))) @ v.T @ x


class Bound(NamedTuple):
    """Theorem 3.1 for two models.

    Attributes:
        bound: below their distance at the steps asked for, of the steps' shape.
        holds_from_step: the bound is proved from this step on, a whole number; 0 or less means
            always, infinity that the two models agree on the forget rows and nothing is claimed.
    """

    bound: Array
    holds_from_step: Array


@float64
def distance(theta_a: ArrayLike, theta_b: ArrayLike, x_test: ArrayLike) -> Array:
    """Mean squared difference of two models' predictions, the distance of retrain equivalence.

    Args:
        theta_a: [..., d].
        theta_b: [..., d].
        x_test: test points, [m, d].

    Returns:
        [...].
    """
    a, b = check.vectors("theta_a", theta_a), check.vectors("theta_b", theta_b)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"theta_a is {list(a.shape)} and theta_b {list(b.shape)}; the last axes must agree"
        )
    return mean_square(a - b, check.rows("x_test", x_test, a.shape[-1]))


@float64
def divergence_bound(
    theta_a: ArrayLike,
    theta_b: ArrayLike,
    x_forget: ArrayLike,
    x_test: ArrayLike,
    lr: ArrayLike,
    steps: ArrayLike,
) -> Bound:
    """Theorem 3.1: how far two models are apart, at least, after both have unlearned.

    Args:
        theta_a: a model before unlearning, [d].
        theta_b: one that was trained in another order, [d].
        x_forget: [k, d], linearly independent rows.
        x_test: test points, [m, d] with m >= k.
        lr: step size of `ascend`, positive.
        steps: at how many steps, a number or an array of numbers.

    Raises:
        ValueError: shapes that do not fit; `lr` that is not positive; steps that are negative or
            not whole; dependent or more than d forget rows; fewer test points than forget rows.
    """
    delta, x_forget, x_test = check.problem(theta_a, theta_b, x_forget, x_test)
    return _divergence_bound(
        delta, x_forget, x_test, check.positive("lr", lr), check.whole_steps(steps)
    )


@float64
def impossible_from_step(
    theta_a: ArrayLike,
    theta_b: ArrayLike,
    x_forget: ArrayLike,
    x_test: ArrayLike,
    lr: ArrayLike,
    eps: ArrayLike,
) -> Array:
    """Corollary 1: from this step on, one of two models is eps away from any retrained model.

    Arguments and errors are those of `divergence_bound`; `eps`, which must be positive, is the
    `distance` that retrain equivalence would allow.

    Returns:
        A whole number; 0 or less means always, infinity never.
    """
    delta, x_forget, x_test = check.problem(theta_a, theta_b, x_forget, x_test)
    return _impossible_from_step(
        delta, x_forget, x_test, check.positive("lr", lr), check.positive("eps", eps)
    )


class _Constants(NamedTuple):
    """What the theorem knows of Delta_0: rho, sigma, |P Delta_0| and C."""

    rho: jax.Array
    sigma: jax.Array
    inside: jax.Array
    outside: jax.Array

    @property
    def holds_from_step(self) -> jax.Array:
        step = jnp.log(2 * self.outside / (self.sigma * self.inside)) / jnp.log1p(self.rho)
        return jnp.where(self.inside > 0, jnp.ceil(step), jnp.inf)


def _constants(
    delta: jax.Array, x_forget: jax.Array, x_test: jax.Array, lr: jax.Array
) -> _Constants:
    # The right singular vectors are an orthonormal basis of the span: P = span' span, [k, d].
    _, scales, span = jnp.linalg.svd(x_forget, full_matrices=False)
    coordinates = span @ delta
    inside = jnp.linalg.norm(coordinates)
    growth = 2 * lr / len(x_forget) * jnp.square(scales)
    return _Constants(
        rho=growth @ jnp.square(coordinates) / jnp.square(inside),
        # On the span: X_test P itself has d - k zeros among its singular values.
        sigma=jnp.linalg.svd(x_test @ span.T, compute_uv=False)[-1],
        inside=inside,
        outside=jnp.linalg.norm(x_test, 2) * jnp.linalg.norm(delta - coordinates @ span),
    )


@jax.jit
def _divergence_bound(
    delta: jax.Array, x_forget: jax.Array, x_test: jax.Array, lr: jax.Array, steps: jax.Array
) -> Bound:
    known = _constants(delta, x_forget, x_test, lr)
    start = jnp.square(known.sigma * known.inside) / (4 * len(x_test))
    bound = start * jnp.exp(2 * steps * jnp.log1p(known.rho))
    return Bound(jnp.where(known.inside > 0, bound, 0.0), known.holds_from_step)


@jax.jit
def _impossible_from_step(
    delta: jax.Array, x_forget: jax.Array, x_test: jax.Array, lr: jax.Array, eps: jax.Array
) -> jax.Array:
    known = _constants(delta, x_forget, x_test, lr)
    # Predictions a and b that are 4 eps apart leave no third within eps of both: halves, squared.
    ratio = 16 * len(x_test) * eps / jnp.square(known.sigma * known.inside)
    step = jnp.ceil(jnp.log(ratio) / (2 * jnp.log1p(known.rho)))
    return jnp.where(known.inside > 0, jnp.maximum(step, known.holds_from_step), jnp.inf)
