"""Forgetting in ridge regression: exact deletion, and matching against following gradients.

The convex setting of Datamodel Matching (arXiv 2410.23232), from the facts that can be derived
again. A model theta minimises |y - X theta|^2 / 2 + (lam / 2) |theta|^2; with H = X'X + lam I,
residuals r = y - X theta and the leverages L_F = X_F H^-1 X_F' of the forget set:

- exact deletion of F is theta - H^-1 X_F' (I - L_F)^-1 r_F;
- the infinitesimal jackknife leaves (I - L_F)^-1 out;
- with its diagonal alone, it is the sum of the exact effects of deleting one point each.

NumPy float64 throughout: the point is exactness, and the systems are small.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy.linalg

from jaxunlearn.core.checks import rows

Attribution = Literal["exact", "leverage", "jackknife"]


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A ridge regression that has been fitted.

    Attributes:
        x: inputs, [n, d].
        y: targets, [n].
        lam: penalty, positive.
        theta: the solution, [d].
        hessian_inverse: H^-1, [d, d].
    """

    x: np.ndarray
    y: np.ndarray
    lam: float
    theta: np.ndarray
    hessian_inverse: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """y - X theta, [n]."""
        return self.y - self.x @ self.theta

    @property
    def leverages(self) -> np.ndarray:
        """x_i' H^-1 x_i, [n]."""
        return np.einsum("nd,de,ne->n", self.x, self.hessian_inverse, self.x)


def fit(x: np.ndarray, y: np.ndarray, lam: float) -> Ridge:
    """Solves a ridge regression without an intercept.

    Raises:
        ValueError: shapes that do not fit, or a penalty that is not positive.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"x is {list(x.shape)} and y {list(y.shape)}; [n, d] and [n] are needed")
    if not lam > 0:
        raise ValueError(f"lam is {lam}; it must be positive")
    inverse = scipy.linalg.inv(x.T @ x + lam * np.eye(x.shape[1]))
    inverse = (inverse + inverse.T) / 2
    return Ridge(x, y, lam, inverse @ (x.T @ y), inverse)


def delete(model: Ridge, forget: np.ndarray, attribution: Attribution = "exact") -> np.ndarray:
    """The parameters after some points are deleted, exactly or by an additive estimate.

    Args:
        model: fitted on all points.
        forget: indices of the points to delete, each once, int [f].
        attribution: "exact"; "leverage", the sum of exact effects of one deletion each;
            "jackknife", the sum of first-order effects.

    Returns:
        [d].
    """
    forget = rows("forget", forget, len(model.x))
    if len(np.unique(forget)) < len(forget):
        raise ValueError("forget has an index twice")
    x, residuals = model.x[forget], model.residuals[forget]
    if attribution == "exact":
        leverage = x @ model.hessian_inverse @ x.T
        residuals = np.linalg.solve(np.eye(len(x)) - leverage, residuals)
    elif attribution == "leverage":
        residuals = residuals / (1 - model.leverages[forget])
    elif attribution != "jackknife":
        raise ValueError(f"attribution is {attribution!r}; it must be exact, leverage or jackknife")
    return model.theta - model.hessian_inverse @ (x.T @ residuals)


def datamodel(model: Ridge, attribution: Attribution = "leverage") -> np.ndarray:
    """The effect of every point's presence on every fitted value, [n, n], as datamodels have it."""
    residuals = model.residuals
    if attribution == "leverage":
        residuals = residuals / (1 - model.leverages)
    elif attribution != "jackknife":
        raise ValueError(f"attribution is {attribution!r}; it must be leverage or jackknife")
    return residuals[:, None] * (model.x @ model.hessian_inverse @ model.x.T)


# gradient(theta, rows) -> [d], of a loss that is a mean over rows
Gradient = Callable[[np.ndarray, np.ndarray], np.ndarray]


def matching(model: Ridge, targets: np.ndarray) -> Gradient:
    """Gradient of the mean of (x_i' theta - target_i)^2 / 2: no penalty, targets for all points.

    Args:
        model: its inputs are used.
        targets: what the forgetting model should give on each point, [n].
    """
    return lambda theta, rows: model.x[rows].T @ (model.x[rows] @ theta - targets[rows]) / len(rows)


def training(model: Ridge, n: int) -> Gradient:
    """Gradient of the training loss per point, as SGD on n points sees it."""
    return lambda theta, rows: (
        model.x[rows].T @ (model.x[rows] @ theta - model.y[rows]) / len(rows)
        + model.lam / n * theta
    )


def ascent(model: Ridge) -> Gradient:
    """The direction that raises the squared error of the given rows."""
    return lambda theta, rows: (
        -model.x[rows].T @ (model.x[rows] @ theta - model.y[rows]) / len(rows)
    )


def descend(
    gradient: Gradient,
    theta: np.ndarray,
    rows: np.ndarray,
    *,
    step: float | Callable[[int], float],
    epochs: int,
    batch_size: int,
    seed: int,
    replace: bool = True,
) -> np.ndarray:
    """Stochastic gradient descent; the parameters after every epoch, [epochs + 1, d].

    What diverges stays at the end of its last epoch that stayed finite.

    Args:
        gradient: gradient of a batch.
        theta: where to begin, [d].
        rows: the points that are used, int [r].
        step: a constant, or a function of the step's number.
        epochs: so many times r / batch_size steps, rounded down.
        batch_size: rows per step, at most all.
        seed: seed of the batches.
        replace: whether every batch is drawn anew, as in the theory of SGD; otherwise each epoch
            is a shuffle of all rows, whose noise cancels within the epoch for the most part.
    """
    rng, batch_size = np.random.default_rng(seed), min(batch_size, len(rows))
    length = step if callable(step) else lambda _: step
    path, per_epoch = [theta], len(rows) // batch_size
    for epoch in range(epochs):
        order = rng.choice(rows, (per_epoch, batch_size)) if replace else rng.permutation(rows)
        batches = order.reshape(-1)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for t, batch in enumerate(batches, epoch * per_epoch):
            theta = theta - length(t) * gradient(theta, batch)
            if not np.abs(theta).max() < 1e100:
                return np.array(path + path[-1:] * (epochs + 1 - len(path)))
        path.append(theta)
    return np.array(path)


def relative_error(theta: np.ndarray, exact: np.ndarray, start: np.ndarray) -> np.ndarray:
    """|theta - exact| / |start - exact|: 0 is forgotten exactly, 1 nothing done; last axis d."""
    return np.linalg.norm(theta - exact, axis=-1) / np.linalg.norm(start - exact)
