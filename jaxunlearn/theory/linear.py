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

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

Array = jax.Array | np.ndarray
_P = ParamSpec("_P")
_R = TypeVar("_R")

# Relative size below which an eigenvalue or a coordinate is rounding error.
_NOTHING = 1e-12


def _float64(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a function in float64 and hands its results over in float64."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **kwargs)
        if not _known(*jax.tree.leaves((args, kwargs))):
            raise ValueError(
                f"{function.__name__}: its arguments were rounded to float32 by jit, vmap or grad; "
                "transform it under jax.enable_x64(True)"
            )
        with jax.enable_x64(True):
            return jax.device_get(function(*args, **kwargs))

    return wrapped


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


@_float64
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
    theta = _vector("theta", theta)
    x, y = _labelled("x", x, "y", y, len(theta))
    return _stage(theta, x, y, _positive("mu", mu))


@_float64
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
    return _vector("theta", theta)


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


@_float64
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
    theta = _vector("theta", theta)
    x, y = _labelled("x_forget", x_forget, "y_forget", y_forget, len(theta))
    return _ascend(theta, x, y, _positive("lr", lr), _steps(steps))


@_float64
def mse(theta: ArrayLike, x: ArrayLike, y: ArrayLike) -> Array:
    """Mean squared error of models theta [..., d] on (x [n, d], y [n]): [...]."""
    theta = _vectors("theta", theta)
    x, y = _labelled("x", x, "y", y, theta.shape[-1])
    return jnp.square(theta @ x.T - y).mean(-1)


@jax.jit
def _ascend(
    theta: jax.Array, x: jax.Array, y: jax.Array, lr: jax.Array, steps: jax.Array
) -> jax.Array:
    gram, v = jnp.linalg.eigh(x @ x.T)
    rate = 2 * lr / len(x)
    a, t = rate * gram, steps[..., None]
    # The sum of (1 + a)^s over s < t. Dependent rows have a = 0, up to rounding: t, then.
    flat = gram <= _NOTHING * gram[-1]
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


@_float64
def distance(theta_a: ArrayLike, theta_b: ArrayLike, x_test: ArrayLike) -> Array:
    """Mean squared difference of two models' predictions, the distance of retrain equivalence.

    Args:
        theta_a: [..., d].
        theta_b: [..., d].
        x_test: test points, [m, d].

    Returns:
        [...].
    """
    a, b = _vectors("theta_a", theta_a), _vectors("theta_b", theta_b)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"theta_a is {list(a.shape)} and theta_b {list(b.shape)}; the last axes must agree"
        )
    return _distance(a - b, _rows("x_test", x_test, a.shape[-1]))


@_float64
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
            not whole; forget rows that are linearly dependent or more than d; fewer test points
            than forget rows.
    """
    delta, x_forget, x_test = _problem(theta_a, theta_b, x_forget, x_test)
    return _divergence_bound(delta, x_forget, x_test, _positive("lr", lr), _steps(steps))


@_float64
def impossible_from_step(
    theta_a: ArrayLike,
    theta_b: ArrayLike,
    x_forget: ArrayLike,
    x_test: ArrayLike,
    lr: ArrayLike,
    eps: ArrayLike,
) -> Array:
    """Corollary 1: from this step on, one of two models is eps away from any retrained model.

    Args:
        theta_a: as in `divergence_bound`.
        theta_b: as in `divergence_bound`.
        x_forget: as in `divergence_bound`.
        x_test: as in `divergence_bound`.
        lr: as in `divergence_bound`.
        eps: the `distance` that retrain equivalence would allow, positive.

    Returns:
        A whole number; 0 or less means always, infinity never.

    Raises:
        ValueError: as `divergence_bound`, or `eps` that is not positive.
    """
    delta, x_forget, x_test = _problem(theta_a, theta_b, x_forget, x_test)
    return _impossible_from_step(
        delta, x_forget, x_test, _positive("lr", lr), _positive("eps", eps)
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


class Phase(NamedTuple):
    """Where divergence is fast, slow or absent.

    Attributes:
        rate: growth of log |Delta_t| per step in the long run (`growth_rate`).
        distance: of the two models after a number of steps; infinite where float64 ends.
    """

    rate: Array
    distance: Array


@_float64
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
    delta, x_forget, x_retain, weight = _with_retain(delta, x_forget, x_retain, retain_weight)
    return _difference(delta, x_forget, x_retain, _positive("lr", lr), weight, _steps(steps))


@_float64
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

    Args:
        delta: as in `difference`.
        x_forget: as in `difference`.
        lr: as in `difference`.
        x_retain: as in `difference`.
        retain_weight: as in `difference`.

    Returns:
        A number; exactly 0 if a part of the difference stays and none grows, -infinity if there is
        no difference.

    Raises:
        ValueError: as `difference`.
    """
    delta, x_forget, x_retain, weight = _with_retain(delta, x_forget, x_retain, retain_weight)
    return _growth_rate(delta, x_forget, x_retain, _positive("lr", lr), weight)


@_float64
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
    retain = _rows("x_retain", x_retain, deltas.shape[1])
    test = _rows("x_test", x_test, deltas.shape[1])
    lrs = jnp.atleast_1d(_positive("lr", lr))
    weights = jnp.atleast_1d(_not_negative("retain_weight", retain_weight))
    step = _steps(steps)
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
    e = jnp.where(jnp.abs(values) <= _NOTHING * jnp.abs(values).max(), 0.0, lr * values)
    logs = 0.5 * jnp.log1p(jnp.maximum(e * (2 + e), -1.0))  # log |1 + e|, precise near e = 0
    coordinates = delta @ vectors
    least = _NOTHING * jnp.linalg.norm(delta)
    rest = jnp.linalg.norm(delta - vectors @ coordinates)  # outside of all rows: stays as it is
    moving = jnp.max(logs, where=jnp.abs(coordinates) > least, initial=-jnp.inf)
    return jnp.maximum(moving, jnp.where(rest > least, 0.0, -jnp.inf))


def _distance(delta: jax.Array, x_test: jax.Array) -> jax.Array:
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
        return Phase(_rate(modes, delta, lr), _distance(_moved(modes, delta, lr, steps), x_test))

    over_lrs = jax.vmap(point, (None, None, 0, None))
    over_weights = jax.vmap(over_lrs, (None, None, None, 0), out_axes=1)
    return jax.vmap(over_weights, (0, 0, None, None))(deltas, x_forget, lrs, weights)


def _known(*values: object) -> bool:
    """Whether values can be looked at: not while a transformation is traced."""
    return not any(isinstance(value, Tracer) for value in values)


def _vectors(name: str, value: ArrayLike) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim < 1:
        raise ValueError(f"{name} is a number; it must be [..., d]")
    return value


def _vector(name: str, value: ArrayLike) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim != 1:
        raise ValueError(f"{name} is {list(value.shape)}; it must be one model, [d]")
    return value


def _rows(name: str, value: ArrayLike, d: int) -> jax.Array:
    value = jnp.asarray(value, jnp.float64)
    if value.ndim != 2 or value.shape[1] != d or not len(value):
        raise ValueError(f"{name} is {list(value.shape)}; it must be one or more rows, [n, {d}]")
    return value


def _labelled(
    x_name: str, x: ArrayLike, y_name: str, y: ArrayLike, d: int
) -> tuple[jax.Array, jax.Array]:
    x, y = _rows(x_name, x, d), jnp.asarray(y, jnp.float64)
    if y.shape != (len(x),):
        raise ValueError(f"{x_name} is {list(x.shape)} and {y_name} {list(y.shape)}, not [n]")
    return x, y


def _positive(name: str, value: ArrayLike) -> jax.Array:
    if _known(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} is {value}; it must be positive")
    return jnp.asarray(value, jnp.float64)


def _not_negative(name: str, value: ArrayLike) -> jax.Array:
    if _known(value) and not np.all(np.asarray(value) >= 0):
        raise ValueError(f"{name} is {value}; it must be 0 or positive")
    return jnp.asarray(value, jnp.float64)


def _steps(steps: ArrayLike) -> jax.Array:
    if _known(steps):
        numbers = np.asarray(steps)
        if not np.all((numbers >= 0) & (numbers == np.floor(numbers))):
            raise ValueError(f"steps is {steps}; whole numbers from 0 on are needed")
    return jnp.asarray(steps, jnp.float64)


def _problem(
    theta_a: ArrayLike, theta_b: ArrayLike, x_forget: ArrayLike, x_test: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the theorem is about, if its assumptions hold: Delta_0, forget rows, test points."""
    a, b = _vector("theta_a", theta_a), _vector("theta_b", theta_b)
    if a.shape != b.shape:
        raise ValueError(
            f"theta_a is {list(a.shape)} and theta_b {list(b.shape)}; both must be [d]"
        )
    forget, test = _rows("x_forget", x_forget, len(a)), _rows("x_test", x_test, len(a))
    if len(forget) > len(a):
        raise ValueError(
            f"x_forget is {list(forget.shape)}; the theorem needs as many rows as columns at most"
        )
    if len(test) < len(forget):
        raise ValueError(
            f"x_test is {list(test.shape)}; the theorem needs as many test points as there are "
            f"forget rows at least, {len(forget)}"
        )
    if _known(forget):
        rank = np.linalg.matrix_rank(np.asarray(forget))
        if rank < len(forget):
            raise ValueError(
                f"x_forget has {len(forget)} rows of rank {rank}; the theorem needs linearly "
                "independent rows"
            )
    return a - b, forget, test


def _with_retain(
    delta: ArrayLike, x_forget: ArrayLike, x_retain: ArrayLike | None, retain_weight: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    delta = _vector("delta", delta)
    forget, weight = _rows("x_forget", x_forget, len(delta)), retain_weight
    if x_retain is not None:
        x_retain = _rows("x_retain", x_retain, len(delta))
    elif not _known(weight) or np.any(np.asarray(weight) != 0):
        raise ValueError(f"retain_weight is {weight}; without x_retain it must be 0")
    return delta, forget, x_retain, _not_negative("retain_weight", weight)
