"""Datamodels: a model's outputs as a linear function of which points it was trained on.

Source: Ilyas et al., Datamodels, 2022; the settings are those that Datamodel Matching (arXiv
2410.23232) needs: all targets at once, and effects that are calibrated.
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import threadpoolctl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.attribution import _lasso, _ridge
from jaxunlearn.attribution import masks as subsets
from jaxunlearn.attribution._statistics import Statistics, check, inverse, standardised

__all__ = ["Datamodel", "Statistics", "effect", "fit", "fit_statistics", "noise_penalty"]

Method = Literal["ridge", "lasso", "difference"]
_HOLD_OUT = 5  # every fifth member judges the lasso's penalties
_LEAST_MEMBERS = 10  # for a choice on held-out members
_RIDGE_PATH = np.logspace(-3, 3, 13)  # in units of a standardised mask's variance
_LASSO_PATH = np.logspace(0, -3, 40)  # in units of the least penalty that gives weights of 0
_PATIENCE = 3  # penalties in a row without a better held-out error end a target's path
_TARGETS = 512  # targets of the lasso computed together
_TOLERANCE = 1e-4  # violation of the optimality conditions, in units of the penalty


@dataclasses.dataclass(frozen=True)
class Datamodel:
    """A linear model of outputs, in coordinates of 0/1 masks.

    Attributes:
        weights: effect of training on each point, [n, T].
        intercept: [T].
        penalty: what each target was fitted with, [T]; 0 for a plain difference in means.
    """

    weights: np.ndarray
    intercept: np.ndarray
    penalty: np.ndarray

    def predict(self, masks: np.ndarray) -> np.ndarray:
        """Outputs of models trained on subsets: 0/1 [S, n] to [S, T].

        Raises:
            ValueError: masks of another number of points.
        """
        masks = subsets.check(masks)
        if masks.shape[1] != len(self.weights):
            raise ValueError(
                f"masks are {list(masks.shape)}; the datamodel is of {len(self.weights)} points"
            )
        return masks.astype(self.weights.dtype) @ self.weights + self.intercept

    def effect(self, forget: np.ndarray) -> np.ndarray:
        """What training on some points adds to every output, [T]: their weights' sum.

        Args:
            forget: indices of training points, int [f].

        Raises:
            ValueError: an index outside the datamodel, or one given twice.
        """
        forget = subsets.check_points(forget, len(self.weights))
        # Half-precision weights are not summed in half precision.
        return self.weights[forget].sum(0, dtype=np.result_type(self.weights.dtype, np.float32))


def fit(
    masks: np.ndarray,
    outputs: np.ndarray,
    *,
    method: Method = "ridge",
    l2: float | np.ndarray | None = None,
    l1: float | np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Datamodel:
    """Regresses outputs on masks, every target on its own.

    With standardised masks X and an intercept b that is not penalised:

    - ridge minimises |y - b - Xw|^2 / (2 M) + (l2 / 2) |w|^2, from one factorisation for all
      targets (n x n or M x M, whichever is smaller);
    - lasso minimises |y - b - Xw|^2 / (2 M) + l1 |w|_1, exactly where the support is well below
      the masks' rank, else to optimality conditions within 1e-4 l1;
    - difference takes the difference in means between models with and without a point (Feldman and
      Zhang 2020), w = X'y / M, and shrinks it towards 0 by l1, if that is given: the lasso, were
      the masks orthogonal.

    A point that is in every subset or in none gets weight 0.

    Args:
        masks: 0/1 [M, n], the points that each member was trained on.
        outputs: [M, T], what it gives on each target.
        method: see above.
        l2: penalty of ridge, positive, a number or [T]. Left out, each target gets that of 13
            between 1e-3 and 1e3 whose leave-one-out error is the least.
        l1: penalty of lasso or difference, not negative, a number or [T]. Left out, each target of
            lasso gets that of up to 40, from the least that makes all weights 0 down to a
            thousandth of it, whose error on every fifth member is the least when it is fitted on
            the others; it is then fitted on all members.
        mesh: devices that share the targets of a lasso.

    Returns:
        The datamodel, of the outputs' float type (at least float32).

    Raises:
        ValueError: masks and outputs that do not match or are not finite (the member is named), too
            few members to choose a penalty (3 for ridge, 10 for lasso), or a penalty that is out
            of range or belongs to another method.
        ArithmeticError: the lasso did not converge; a larger l1 will.
    """
    masks, outputs = check(masks, outputs)
    penalty = _penalty(method, l2, l1, outputs.shape[1])
    _check_members(method, len(masks), penalty)
    if method == "ridge":
        return _RidgeFit(masks)(outputs, penalty)
    statistics = Statistics.of(masks, outputs)
    if method == "lasso":
        weights, penalty = _fit_lasso(masks, outputs, statistics, penalty, mesh)
    else:
        weights = _difference(statistics, penalty)
    return _datamodel(statistics, weights, penalty, outputs.dtype)


def effect(
    masks: np.ndarray,
    outputs: np.ndarray,
    forget: np.ndarray,
    *,
    method: Method = "ridge",
    block: int = 4096,
    mesh: Mesh | None = None,
    callback: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`fit(...).effect(forget)` without ever holding all weights: for outputs that fill a disk.

    Args:
        masks: 0/1 [M, n].
        outputs: [M, T], an array or a memory-mapped one; a block of its columns is read at a time.
        forget: indices of training points, int [f].
        method: see `fit`, as `mesh`; penalties are chosen.
        block: targets that are fitted together. Ridge factorises the masks once for all of them.
        mesh: devices.
        callback: called with the number of targets that are done.

    Returns:
        What training on the points adds to every output, [T].

    Raises:
        ValueError: as `fit` and `Datamodel.effect`.
    """
    masks = subsets.check(masks)
    if np.ndim(outputs) != 2 or len(outputs) != len(masks) or block < 1:
        raise ValueError(
            f"masks are {list(masks.shape)}, outputs {list(np.shape(outputs))}, block is {block}; "
            "[M, n], [M, T] with the same M, and at least 1 are needed"
        )
    forget = subsets.check_points(forget, masks.shape[1])
    _check_members(method, len(masks), _penalty(method, None, None, outputs.shape[1]))
    shared = _RidgeFit(masks) if method == "ridge" else None
    parts = []
    for at in range(0, outputs.shape[1], block):
        _, columns = check(masks, outputs[:, at : at + block], first_target=at)
        fitted = shared(columns, None) if shared else fit(masks, columns, method=method, mesh=mesh)
        parts.append(fitted.effect(forget))
        if callback is not None:
            callback(at + columns.shape[1])
    return np.concatenate(parts)


def fit_statistics(
    statistics: Statistics,
    *,
    method: Method = "ridge",
    l2: float | np.ndarray | None = None,
    l1: float | np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Datamodel:
    """`fit` from streamed statistics, without the members: float64, and its penalty must be given.

    Raises:
        ValueError: no penalty, or one that does not fit.
    """
    penalty = _penalty(method, l2, l1, len(statistics.offset))
    if penalty is None:
        raise ValueError(f"{method} on statistics needs its penalty: there are no members to judge")
    if method == "ridge":
        spectrum, v = scipy.linalg.eigh(statistics.gram())
        coordinates = v.T @ statistics.correlation()
        weights = v @ (coordinates / (spectrum[:, None] + penalty))
    elif method == "lasso":
        weights = _solve_lasso(_LassoData.of(statistics, mesh), penalty)
    else:
        weights = _difference(statistics, penalty)
    return _datamodel(statistics, weights, penalty, np.dtype(np.float64))


def noise_penalty(statistics: Statistics) -> np.ndarray:
    """An l1 for "difference" that most weights of pure noise stay under, [T].

    std(y) sqrt(2 log(n) / M), the universal threshold of Donoho and Johnstone 1994.
    """
    n = len(statistics.mask_sum)
    return np.sqrt(statistics.output_variance * 2 * np.log(n) / statistics.count)


def _check_members(method: Method, n_members: int, penalty: np.ndarray | None) -> None:
    """Raises a ValueError for too few members to choose a penalty."""
    least = {"ridge": 3, "lasso": _LEAST_MEMBERS, "difference": 1}[method]
    if penalty is None and n_members < least:
        name = "l2" if method == "ridge" else "l1"
        raise ValueError(
            f"{n_members} members are too few to choose {name} among a path; at least {least} are "
            f"needed, or give {name}"
        )


def _penalty(method: Method, l2: Any, l1: Any, n_targets: int) -> np.ndarray | None:
    """The penalty of each target, [T]; None if it is to be chosen."""
    if method not in ("ridge", "lasso", "difference"):
        raise ValueError(f"method is {method!r}; it must be ridge, lasso or difference")
    name, value, other = ("l2", l2, l1) if method == "ridge" else ("l1", l1, l2)
    if other is not None:
        raise ValueError(f"{'l1' if name == 'l2' else 'l2'} is given, but {method} has {name}")
    if value is None:
        return np.zeros(n_targets) if method == "difference" else None
    value = np.asarray(value, np.float64)
    if value.shape not in ((), (n_targets,)):
        raise ValueError(f"{name} has shape {list(value.shape)}; a number or [{n_targets}] fits")
    if not np.isfinite(value).all() or value.min() < 0 or (name == "l2" and value.min() == 0):
        least = "positive" if name == "l2" else "not negative"
        raise ValueError(f"{name} is {value}; it must be finite and {least}")
    return np.broadcast_to(value, n_targets)


def _datamodel(statistics: Statistics, weights, penalty, dtype: np.dtype) -> Datamodel:
    weights, intercept = statistics.in_mask_coordinates(weights)
    return _of_type(weights, intercept, penalty, dtype)


def _of_type(weights, intercept, penalty, dtype: np.dtype) -> Datamodel:
    dtype = np.result_type(dtype, np.float32)
    return Datamodel(weights.astype(dtype), intercept.astype(dtype), np.array(penalty))


def _difference(statistics: Statistics, penalty) -> np.ndarray:
    correlation = statistics.correlation()
    return np.sign(correlation) * np.maximum(np.abs(correlation) - penalty, 0)


class _RidgeFit:
    """Ridge on some masks, factorised once for any number of targets."""

    def __init__(self, masks: np.ndarray):
        self.mean = masks.mean(0)
        std = np.sqrt(self.mean * (1 - self.mean))
        self.scale = inverse(std)
        self.factors = _ridge.factorise((masks - self.mean) * self.scale)

    def __call__(self, outputs: np.ndarray, penalty: np.ndarray | None) -> Datamodel:
        mean = outputs.mean(0, dtype=np.float64)
        centred = outputs - mean
        if penalty is None:
            errors = _ridge.leave_one_out(self.factors, centred, _RIDGE_PATH)
            penalty = _RIDGE_PATH[errors.argmin(0)]
        weights = _ridge.solve(self.factors, centred, penalty) * self.scale[:, None]
        return _of_type(weights, mean - self.mean @ weights, penalty, outputs.dtype)


@dataclasses.dataclass(frozen=True)
class _LassoData:
    """What the solver reads; on the device in float32, targets over the devices of the mesh."""

    gram: np.ndarray
    correlation: np.ndarray
    largest: np.ndarray  # the least penalty that makes all weights of a target 0, [T]
    step: float
    on_device: jax.Array
    mesh: Mesh | None

    @classmethod
    def of(cls, statistics: Statistics, mesh: Mesh | None) -> "_LassoData":
        gram, correlation = statistics.gram(), statistics.correlation()
        largest = np.maximum(np.abs(correlation).max(0), 1e-30)
        # A little less than 1 / top, which the iteration approaches from above.
        step = 0.99 / max(_largest_eigenvalue(gram), 1e-12)
        return cls(gram, correlation, largest, step, jnp.asarray(gram, jnp.float32), mesh)

    def block(self, at: int) -> tuple[jax.Array, slice]:
        """The correlations of some targets, padded to a full block, [n, _TARGETS]."""
        columns = slice(at, min(at + _TARGETS, self.correlation.shape[1]))
        return self.place(self.correlation[:, columns], 0.0), columns

    def place(self, values: np.ndarray, padding: float) -> jax.Array:
        """Values of some targets, on the last axis, padded to a full block."""
        width = min(_TARGETS, self.correlation.shape[1])
        if self.mesh is not None:
            width = -(-width // self.mesh.size) * self.mesh.size
        missing = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
        padded = jnp.asarray(np.pad(values, missing, constant_values=padding), jnp.float32)
        if self.mesh is None:
            return padded
        spec = PartitionSpec(*[None] * (values.ndim - 1), self.mesh.axis_names)
        return jax.device_put(padded, NamedSharding(self.mesh, spec))


def _fit_lasso(masks, outputs, statistics: Statistics, penalty, mesh: Mesh | None):
    data = _LassoData.of(statistics, mesh)
    if penalty is not None:
        return _solve_lasso(data, penalty), penalty
    held_out = np.arange(len(masks)) % _HOLD_OUT == _HOLD_OUT - 1
    rest = Statistics.of(masks[~held_out], outputs[~held_out])
    x = jnp.asarray(standardised(masks[held_out], rest), jnp.float32)
    y = (outputs[held_out] - rest.output_mean).astype(np.float32)
    part = _LassoData.of(rest, mesh)
    penalty, start = np.empty(outputs.shape[1]), np.empty(data.correlation.shape, np.float32)
    for at in range(0, outputs.shape[1], _TARGETS):
        correlation, columns = part.block(at)
        penalty[columns], start[:, columns] = _choose(
            part, correlation, part.largest[columns], x, part.place(y[:, columns], 0.0)
        )
    return _solve_lasso(data, penalty, start), penalty


def _choose(part: _LassoData, correlation, largest, x, y) -> tuple[np.ndarray, np.ndarray]:
    """The penalty of least held-out error for some targets, and the weights there."""
    n_targets = len(largest)
    padded = part.place(largest, 1.0)
    best = weights = jnp.zeros_like(correlation)
    error, chosen = part.place(np.full(n_targets, np.inf), -np.inf), padded
    since = jnp.where(jnp.arange(len(padded)) < n_targets, 0, _PATIENCE)
    for fraction in _LASSO_PATH:
        l1 = fraction * padded
        # A target that is through its path no longer keeps the others waiting.
        tolerance = jnp.where(since < _PATIENCE, _TOLERANCE * l1, jnp.inf)
        weights, worst = _lasso.solve(
            part.on_device, correlation, l1, part.step, weights, tolerance
        )
        if worst > 1:
            break  # so small a penalty hardly has an optimum; larger ones were tried
        new_error = _held_out_error(x, y, weights)
        better = (new_error < error) & (since < _PATIENCE)
        best = jnp.where(better, weights, best)
        error, chosen = jnp.where(better, new_error, error), jnp.where(better, l1, chosen)
        since = jnp.where(better, 0, since + 1)
        if (since >= _PATIENCE).all():
            break
    return np.asarray(chosen)[:n_targets], np.asarray(best)[:, :n_targets]


@jax.jit
def _held_out_error(x, y, weights):
    return jnp.mean(jnp.square(y - _lasso.product(x, weights)), 0)


def _solve_lasso(data: _LassoData, penalty, start=None) -> np.ndarray:
    n, n_targets = data.correlation.shape
    weights = np.zeros((n, n_targets))
    for at in range(0, n_targets, _TARGETS):
        correlation, columns = data.block(at)
        l1 = data.place(penalty[columns], 1.0)
        begin = jnp.zeros_like(correlation)
        if start is not None:
            begin = data.place(start[:, columns], 0.0)
        # A penalty of 0 gives no scale.
        scale = np.maximum(penalty[columns], 1e-2 * data.largest[columns])
        tolerance = data.place(_TOLERANCE * scale, 1.0)
        solved, worst = _lasso.solve(data.on_device, correlation, l1, data.step, begin, tolerance)
        solved = np.asarray(solved, np.float64)
        numbers = range(columns.start, columns.stop)

        def polished(column: int, at=at, solved=solved) -> np.ndarray | None:
            return _lasso.polish(
                data.gram, data.correlation[:, column], penalty[column], solved[:, column - at]
            )

        # Systems this small are solved faster side by side than each on all cores.
        with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            exact = list(pool.map(polished, numbers))
        for column, optimum in zip(numbers, exact, strict=True):
            if optimum is None and worst > 1:
                raise ArithmeticError(
                    f"the lasso of target {column} did not converge at l1 = {penalty[column]:.2g} "
                    f"(weights are 0 from {data.largest[column]:.2g} on); a larger one will"
                )
            weights[:, column] = solved[:, column - at] if optimum is None else optimum
    return weights


def _largest_eigenvalue(gram: np.ndarray) -> float:
    if len(gram) < 100:
        return float(np.linalg.eigvalsh(gram)[-1])
    start = np.ones(len(gram))
    return float(
        scipy.sparse.linalg.eigsh(gram, 1, v0=start, tol=1e-4, return_eigenvectors=False)[0]  # type: ignore[arg-type]
    )
