"""What the linear theory of `theory.linear` says, on random problems: bound, recency, phases.

`report` gathers everything that `jaxunlearn paths --theory` draws and an experiment writes down.
All problems of a kind run in one program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.run_folder import Progress
from jaxunlearn.core.study import quiet
from jaxunlearn.theory import linear

# Steps after t0 over which the bound is compared, and the last ones that give the slope.
_AFTER, _SLOPE = 50, 19


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of several problems, stacked, in one program; one problem after the other.

    Not `vmap`: two batched factorisations in one program, which XLA runs at once, may wait for each
    other's threads for ever on two cores.
    """
    return jax.jit(lambda *args: jax.lax.map(lambda problem: function(*problem), args))


class Problem(NamedTuple):
    """Two training sets A and B, a forget set U and test points; `draw_problem` makes one."""

    x_a: np.ndarray
    y_a: np.ndarray
    x_b: np.ndarray
    y_b: np.ndarray
    x_forget: np.ndarray
    y_forget: np.ndarray
    x_test: np.ndarray

    def orders(self, mu: float) -> tuple[linear.Array, linear.Array]:
        """The models trained on A, then B, and on B, then A, both from zero."""
        stages = [linear.Data(self.x_a, self.y_a, mu), linear.Data(self.x_b, self.y_b, mu)]
        zero = jnp.zeros(self.x_a.shape[1])
        return linear.run_order(zero, stages, (0, 1)), linear.run_order(zero, stages, (1, 0))


def draw_problem(seed: int, *, d: int = 200, n: int = 30, k: int = 20, m: int = 40) -> Problem:
    """Draws a problem: everything standard normal, the columns of B stretched by 1 to 1.5.

    Args:
        seed: seed of the draw.
        d: parameters.
        n: rows of A and of B.
        k: rows of the forget set.
        m: test points.
    """
    rng = np.random.default_rng(seed)
    x_a, x_b = rng.normal(size=(2, n, d))
    y_a, y_b = rng.normal(size=(2, n))
    x_forget, y_forget, x_test = (rng.normal(size=s) for s in ((k, d), k, (m, d)))
    return Problem(x_a, y_a, x_b * (1 + rng.random(d) / 2), y_b, x_forget, y_forget, x_test)


def divergence(seeds: Sequence[int], *, mu: float = 1.0, lr: float = 0.01) -> dict[str, Any]:
    """Theorem 3.1 and its corollary against what happens, on one problem per seed.

    Args:
        seeds: one problem each.
        mu: both stages' `Data.mu`.
        lr: step size of unlearning.

    Returns:
        `violations` of the bound at steps max(t0, 0) to max(t0, 0) + 50, `least_slack` (distance /
        bound there), ranges of `holds_from_step` and `rho`, of `slope_ratio` (measured growth of
        log distance over the guaranteed one), `closed_form_error` against the explicit loop,
        `midpoint_within_eps` (problems where the model half-way, the best that a retrained model
        can do, is still within eps = 10 x the distance at the start, at the corollary's step), and
        the curves of the first problem as `example`.
    """
    problems = Problem(*map(np.stack, zip(*map(draw_problem, seeds), strict=True)))
    with jax.enable_x64(True):
        a, b, t0, rho = _each(lambda p: _starts(p, mu, lr))(problems)
        t0, rho = jax.device_get((t0, rho))
        first = np.maximum(t0, 0).astype(int)
        steps = np.arange(first.max() + _AFTER + 1)
        distance, bound, error = jax.device_get(
            _each(lambda p, a, b: _course(p, a, b, lr, steps))(problems, a, b)
        )
        halfway, eps, impossible = jax.device_get(
            _each(lambda p, a, b: _midpoint(p, a, b, lr))(problems, a, b)
        )
    window = (steps >= first[:, None]) & (steps <= first[:, None] + _AFTER)
    last = first + _AFTER
    row = np.arange(len(first))
    slope = np.log(distance[row, last] / distance[row, last - _SLOPE]) / _SLOPE
    return {
        "problems": len(first),
        "violations": int((distance < bound)[window].sum()),
        "least_slack": float((distance / bound)[window].min()),
        "holds_from_step": _range(t0),
        "rho": _range(rho),
        "slope_ratio": _range(slope / (2 * np.log1p(rho))),
        "closed_form_error": float(error.max()),
        "midpoint_within_eps": int((halfway < 1).sum()),
        "example": {
            "distance": distance[0, : last[0] + 1].tolist(),
            "bound": bound[0, : last[0] + 1].tolist(),
            "holds_from_step": int(t0[0]),
            "eps": float(eps[0]),
            "impossible_from_step": int(impossible[0]),
        },
    }


def _starts(problem: Problem, mu: float, lr: float):
    """The two models before unlearning, with the t0 and the rho of the theorem."""
    a, b = problem.orders(mu)
    known = linear.divergence_bound(a, b, problem.x_forget, problem.x_test, lr, np.arange(2))
    return a, b, known.holds_from_step, jnp.sqrt(known.bound[1] / known.bound[0]) - 1


def _unlearned(problem: Problem, a, b, lr: float, steps) -> tuple[linear.Array, ...]:
    return tuple(linear.ascend(t, problem.x_forget, problem.y_forget, lr, steps) for t in (a, b))


def _course(problem: Problem, a, b, lr: float, steps: np.ndarray):
    """Distance and bound at all steps, and the largest error of the closed form."""
    ends = _unlearned(problem, a, b, lr, steps)
    loops = [_explicit(t, problem.x_forget, problem.y_forget, lr, len(steps)) for t in (a, b)]
    gap, wanted = ends[0] - ends[1], loops[0] - loops[1]
    error = jnp.linalg.norm(gap - wanted, axis=-1) / jnp.linalg.norm(wanted, axis=-1)
    bound = linear.divergence_bound(a, b, problem.x_forget, problem.x_test, lr, steps).bound
    return linear.distance(ends[0], ends[1], problem.x_test), bound, error.max()


def _midpoint(problem: Problem, a, b, lr: float):
    """Distance from a to half-way, over eps, at the corollary's step; eps is 10 x the start."""
    eps = 10 * linear.distance(a, b, problem.x_test)
    step = linear.impossible_from_step(a, b, problem.x_forget, problem.x_test, lr, eps)
    step = jnp.maximum(step, 0)
    ends = _unlearned(problem, a, b, lr, step)
    return linear.distance(ends[0], (ends[0] + ends[1]) / 2, problem.x_test) / eps, eps, step


def draw_sets(seed: int, *, d: int = 400, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Draws four related training sets, x [4, n, d] and y [4, n] without noise.

    The rows of a set share an offset, and its targets come from weights of its own around common
    ones.

    Args:
        seed: seed of the draw.
        d: parameters.
        n: rows per set.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, n, d)) + 0.5 * rng.normal(size=(4, 1, d))
    weights = (rng.normal(size=d) + rng.normal(size=(4, d))) / np.sqrt(d)
    return x, np.einsum("snd,sd->sn", x, weights)


def recency(
    seeds: Sequence[int], *, mu: float = 1.0, lr: float = 1e-3, steps: int = 30
) -> dict[str, Any]:
    """How much is forgotten by where the forget set stood among four stages.

    The fourth set is forgotten; it is trained at position 1, 2, 3 or 4 among the other three.

    Args:
        seeds: one draw of the sets each.
        mu: all stages' `Data.mu`.
        lr: step size of unlearning.
        steps: steps of unlearning.

    Returns:
        `forget_score` (increase of the forget set's mean squared error) and `retain_damage` (mean
        increase on the other three), [seeds, 4] by position; in how many seeds the last position
        forgets least, `last_is_slowest`; and by which factor the next forgets more, `least_ratio`.
    """
    orders = [(*range(p), 3, *range(p, 3)) for p in range(4)]
    x, y = map(np.stack, zip(*map(draw_sets, seeds), strict=True))

    def scores(x, y):
        stages = [linear.Data(*one, mu) for one in zip(x, y, strict=True)]
        zero = jnp.zeros(x.shape[-1])
        trained = jnp.stack([linear.run_order(zero, stages, order) for order in orders])
        unlearned = jax.vmap(lambda theta: linear.ascend(theta, x[3], y[3], lr, steps))(trained)
        changes = [linear.mse(unlearned, *s[:2]) - linear.mse(trained, *s[:2]) for s in stages]
        return changes[3], jnp.stack(changes[:3]).mean(0)

    with jax.enable_x64(True):
        forget, damage = jax.device_get(_each(scores)(x, y))
    return {
        "forget_score": forget.tolist(),
        "retain_damage": damage.tolist(),
        "last_is_slowest": int((forget.argmin(1) == 3).sum()),
        "least_ratio": float((forget[:, :3].min(1) / forget[:, 3]).min()),
    }


def phases(seed: int, *, d: int = 200, n: int = 30, k: int = 20, m: int = 40) -> dict[str, Any]:
    """Two phase diagrams of learning a retain and a forget set in either order, then unlearning.

    Args:
        seed: seed of all rows.
        d: parameters.
        n: retain rows.
        k: forget rows, the most of them in the first diagram.
        m: test points.

    Returns:
        `size`: rate by number of forget rows (1 to k) and step size. `overlap`: rate by overlap and
        retain weight at a step of 1e-3, and `stops_at`, the weight from which divergence stops at
        an overlap of 1. A forget row is overlap * (a mixture of retain rows) + sqrt(1 - overlap^2)
        * (a row of its own). Each diagram also has `distance`, after 100 steps.
    """
    rng = np.random.default_rng(seed)
    retain, independent, test = (rng.normal(size=(rows, d)) for rows in (n, k, m))
    mixture = rng.normal(size=(k, n)) / np.sqrt(n)
    y_retain, y_forget = rng.normal(size=n), rng.normal(size=k)

    sizes = np.arange(1, k + 1)
    used = np.arange(k) < sizes[:, None]
    scale = used * np.sqrt(k / sizes)[:, None]  # k of K rows, see linear.phase_diagram
    overlaps = np.linspace(0, 1, 21)
    mixed = overlaps[:, None, None] * (mixture @ retain)
    mixed = mixed + np.sqrt(1 - overlaps**2)[:, None, None] * independent
    lrs, weights = np.logspace(-4, -1.5, 26), np.array([0.0, *np.logspace(-1, 1.5, 26)])

    def delta(x_forget, y_forget):
        """Retain set first minus forget set first; rows of zeros teach nothing."""
        stages = [linear.Data(retain, y_retain), linear.Data(x_forget, y_forget)]
        zero = jnp.zeros(d)
        return linear.run_order(zero, stages, (0, 1)) - linear.run_order(zero, stages, (1, 0))

    def diagram(x_learned, y_learned, x_forget, lr, weight):
        deltas = jax.vmap(delta)(x_learned, y_learned)
        phase = linear.phase_diagram(deltas, x_forget, retain, test, lr, weight, 100)
        return linear.Phase(*(np.squeeze(_rounded(v)).tolist() for v in jax.device_get(phase)))

    with jax.enable_x64(True):
        by_size = diagram(
            used[:, :, None] * independent,
            used * y_forget,
            scale[:, :, None] * independent,
            lrs,
            [0.0],
        )
        by_overlap = diagram(mixed, np.tile(y_forget, (len(overlaps), 1)), mixed, [1e-3], weights)
    return {
        "size": {"k": sizes.tolist(), "lr": _rounded(lrs).tolist(), **by_size._asdict()},
        "overlap": {
            "overlap": overlaps.round(2).tolist(),
            "retain_weight": _rounded(weights).tolist(),
            # M_U = X_R' W' W X_R 2 lr / k against lambda X_R' X_R 2 lr / n, with W the mixture.
            "stops_at": float(n / k * np.linalg.norm(mixture, 2) ** 2),
            **by_overlap._asdict(),
        },
    }


def report(
    n_problems: int = 200, n_recency: int = 50, seed: int = 0, progress: Progress = quiet
) -> dict[str, Any]:
    """Everything: `divergence`, `recency` and `phases`, as plain numbers.

    Args:
        n_problems: problems on which the bound is checked.
        n_recency: draws of four stages.
        seed: seed of the first of each; the others follow it.
        progress: called as `progress(part, 0, 1)` and `progress(part, 1, 1)` around each of these.

    Raises:
        ValueError: a number of problems or draws below 1.
    """
    checks.at_least("n_problems", n_problems, 1)
    checks.at_least("n_recency", n_recency, 1)
    parts = {
        "divergence": lambda: divergence(range(seed, seed + n_problems)),
        "recency": lambda: recency(range(seed, seed + n_recency)),
        "phases": lambda: phases(seed),
    }
    results = {}
    for name, compute in parts.items():
        progress(name, 0, 1)
        results[name] = compute()
        progress(name, 1, 1)
    return results


def _explicit(theta, x, y, lr: float, n: int) -> jax.Array:
    """Gradient ascent step by step; the models after 0 to n - 1 steps, [n, d]."""

    def step(theta, _):
        return theta + 2 * lr / len(x) * x.T @ (x @ theta - y), theta

    return jax.lax.scan(step, theta, length=n)[1]


def _range(values) -> list[float]:
    return [float(np.min(values)), float(np.max(values))]


def _rounded(values: np.ndarray, digits: int = 5) -> np.ndarray:
    return np.vectorize(lambda v: float(f"{v:.{digits}g}"), otypes=[float])(values)
