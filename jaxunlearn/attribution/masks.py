"""Random subsets of a training set, one for each member of a datamodel ensemble."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.checks import rows


def exact(key: jax.Array, n_members: int, n: int, alpha: float = 0.5) -> np.ndarray:
    """Subsets of one size, floor(alpha n), uniform among all of that size.

    Args:
        key: a typed key; member i's subset depends on `fold_in(key, i)` alone, so that more members
            can be added later.
        n_members: number of subsets, M.
        n: size of the training set.
        alpha: the fraction that a member is trained on.

    Returns:
        bool [M, n].

    Raises:
        ValueError: an argument out of its range, or a subset that would be empty or everything.
    """
    size = int(alpha * n + 1e-9)  # 0.7 * 10 is 7 here, not 6.999
    _check(n_members, n, alpha)
    if not 0 < size < n:
        raise ValueError(f"alpha is {alpha}: subsets of {size} of {n} points tell nothing")
    return np.asarray(_exact(key, n_members, n, size))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _exact(key, n_members: int, n: int, size: int) -> jax.Array:
    def one(i):
        order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, i), (n,)))
        return jnp.zeros(n, bool).at[order[:size]].set(True)

    return jax.lax.map(one, jnp.arange(n_members))


def bernoulli(key: jax.Array, n_members: int, n: int, alpha: float = 0.5) -> np.ndarray:
    """Subsets that hold every point independently with probability alpha; sizes differ.

    Arguments, result and errors are those of `exact`; a subset may come out empty, and `tables`
    then says so. Members take as many steps as the smallest subset allows, see `data.batches`.
    """
    _check(n_members, n, alpha)
    return np.asarray(_bernoulli(key, n_members, n, alpha))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bernoulli(key, n_members: int, n: int, alpha) -> jax.Array:
    def one(i):
        return jax.random.bernoulli(jax.random.fold_in(key, i), alpha, (n,))

    return jax.lax.map(one, jnp.arange(n_members))


def tables(masks: np.ndarray) -> np.ndarray:
    """The rows of each subset, for training on them and on nothing else.

    Args:
        masks: bool [M, n].

    Returns:
        int32 [M, k], k the largest size; shorter rows end with -1.

    Raises:
        ValueError: masks that are not 0/1, or an empty subset.
    """
    masks = check(masks)
    sizes = masks.sum(1)
    if sizes.min() == 0:
        raise ValueError(f"masks: member {int(sizes.argmin())} has an empty subset")
    out = np.full((len(masks), sizes.max()), -1, np.int32)
    out[np.arange(out.shape[1]) < sizes[:, None]] = np.nonzero(masks)[1]
    return out


def check(masks: np.ndarray) -> np.ndarray:
    """Masks as bool [M, n]; raises a ValueError for another shape or values besides 0 and 1."""
    masks = np.asarray(masks)
    if masks.ndim != 2 or 0 in masks.shape:
        raise ValueError(f"masks have shape {list(masks.shape)}; [M, n] is needed")
    if masks.dtype != bool:
        if not np.isin(masks, (0, 1)).all():
            raise ValueError("masks have values besides 0 and 1")
        masks = masks.astype(bool)
    return masks


def check_points(points: np.ndarray, n: int) -> np.ndarray:
    """Training points as int [f]; raises a ValueError for one out of range or given twice."""
    points = rows("forget", points, n)
    if len(np.unique(points)) != len(points):
        raise ValueError("forget has an index twice")
    return points


def _check(n_members: int, n: int, alpha: float) -> None:
    if n_members < 1 or n < 2 or not 0 < alpha < 1:
        raise ValueError(
            f"masks: n_members is {n_members}, n is {n}, alpha is {alpha}; n_members >= 1, n >= 2 "
            "and 0 < alpha < 1 are needed"
        )
