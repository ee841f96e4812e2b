"""Ridge regression of all targets, and of a whole path of penalties, from one factorisation."""

from typing import NamedTuple

import numpy as np
import scipy.linalg


class Factors(NamedTuple):
    """Standardised masks X by their spectrum, X'X / M = V S V' or X X' / M = U S U'.

    Attributes:
        spectrum: S, [r].
        back: [n, r], from the spectral coordinates to weights.
        inputs: [M, r], fitted values are `inputs @ (coordinates / (spectrum + l2))`.
        leverage: [M, r], the same for the diagonal of the hat matrix.
        left: [M, r], coordinates of outputs Y are `left.T @ Y`.
    """

    spectrum: np.ndarray
    back: np.ndarray
    inputs: np.ndarray
    leverage: np.ndarray
    left: np.ndarray


def factorise(x: np.ndarray) -> Factors:
    """The primal side (n x n) or the dual one (M x M), whichever is smaller.

    Args:
        x: standardised masks, float64 [M, n].
    """
    n_members, n = x.shape
    if n <= n_members:
        spectrum, v = scipy.linalg.eigh(x.T @ x / n_members, check_finite=False)
        inputs = x @ v
        return Factors(spectrum, v, inputs, inputs**2 / n_members, inputs / n_members)
    spectrum, u = scipy.linalg.eigh(x @ x.T / n_members, check_finite=False)
    return Factors(spectrum, x.T @ u / n_members, u * spectrum, u**2 * spectrum, u)


def solve(factors: Factors, outputs: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Weights of the standardised masks.

    Args:
        factors: factorised masks.
        outputs: centred, float64 [M, T].
        l2: a positive penalty for each target, [T].

    Returns:
        [n, T].
    """
    coordinates = factors.left.T @ outputs
    return factors.back @ (coordinates / (factors.spectrum[:, None] + l2))


def leave_one_out(factors: Factors, outputs: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Mean squared leave-one-out error of every target at every penalty, in closed form.

    float32: it only chooses among penalties. Arguments as in `solve`; path [L]; returns [L, T].
    """
    left, inputs, leverage, y = (
        a.astype(np.float32) for a in (factors.left, factors.inputs, factors.leverage, outputs)
    )
    coordinates = left.T @ y
    errors = []
    for l2 in path:
        shrunk = (1 / (factors.spectrum + l2)).astype(np.float32)
        hat = leverage @ shrunk + np.float32(1 / len(y))  # the intercept's share
        residual = (y - inputs @ (coordinates * shrunk[:, None])) / np.maximum(1 - hat, 1e-6)[
            :, None
        ]
        errors.append(np.square(residual).mean(0))
    return np.array(errors)
