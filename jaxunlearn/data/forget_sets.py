"""Forget sets: which training examples are to be forgotten, as sorted unique indices."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg

from jaxunlearn.core.checks import rows, whole
from jaxunlearn.core.readers import read_npy, reading

_CHUNK = 4096  # examples taken to float64 at once


def random(n: int, size: int, seed: int = 0) -> np.ndarray:
    """`size` of `n` examples, uniformly without replacement: int64 [size]."""
    _check_size(size, n)
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False))


def class_restricted(labels: np.ndarray, label: int, size: int, seed: int = 0) -> np.ndarray:
    """`size` examples of the class `label`, uniformly without replacement; labels are int [n]."""
    members = _members(labels, label, size)
    return np.sort(np.random.default_rng(seed).choice(members, size, replace=False))


def cluster(features: np.ndarray, labels: np.ndarray, label: int, size: int) -> np.ndarray:
    """A coherent sub-population of one class: its most outlying example and its neighbours.

    The anchor is the example of the class farthest from the class mean; the set is the anchor and
    its nearest neighbours within the class (Euclidean). Features are [n, ...], flattened, uint8
    scaled to [0, 1]; labels are int [n].
    """
    features = np.asarray(features)
    if len(features) != len(labels):
        raise ValueError(f"features are {len(features)}, but there are {len(labels)} labels")
    members = _members(labels, label, size)
    points = _points(features[members])
    anchor = np.argmax(np.linalg.norm(points - points.mean(0), axis=1))
    distance = np.linalg.norm(points - points[anchor], axis=1)
    return np.sort(members[np.argsort(distance, kind="stable")[:size]])


def principal_component(
    features: np.ndarray, size: int, component: int = 0, both_ends: bool = False
) -> np.ndarray:
    """The examples that lie farthest along a principal component of the features.

    As the coherent forget sets of Datamodel Matching (arXiv 2410.23232), which rank by components
    of an embedding. The component's sign is fixed by making its largest entry positive.

    Args:
        features: [n, ...], flattened and centred; uint8 is scaled to [0, 1].
        size: how many.
        component: 0 for the first.
        both_ends: half from the top and half from the bottom, the odd one from the top.
    """
    features = np.asarray(features)
    _check_size(size, len(features))
    rank = min(len(features), features[0].size)
    if not whole("component", component, 0) < rank:
        raise ValueError(f"component is {component}; there are {rank}, counted from 0")
    axis = _principal_axis(features, component)
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    scores = np.concatenate([points @ axis for points in _chunks(features)])
    order = np.argsort(-scores, kind="stable")
    if not both_ends:
        return np.sort(order[:size])
    bottom = size // 2
    return np.sort(np.concatenate([order[: size - bottom], order[len(order) - bottom :]]))


def from_file(path: str | os.PathLike, n: int) -> np.ndarray:
    """Indices from a `.npy` file or a text file with whitespace or commas between integers.

    They must lie in [0, n), n being the number of training examples. A `.npy` file may hold a mask
    instead, bool [n].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not integers, out of range, duplicate, none, or all of them; or a mask of
            another length.
    """
    indices = read(path)
    if indices.dtype == bool and indices.ndim == 1:
        if len(indices) != n:
            raise ValueError(
                f"forget_file {path} holds a mask of {len(indices)}; there are {n} training "
                "examples"
            )
        indices = np.flatnonzero(indices)
    with reading(f"forget_file {path}"):
        return check(indices, n)


def read(path: str | os.PathLike) -> np.ndarray:
    """The array that a file of indices or of a mask holds, see `from_file`; unchecked."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"forget_file is {str(path)!r}; there is no such file")
    with reading(f"forget_file {path} does not hold integers"):
        if path.suffix == ".npy":
            return read_npy(path)
        return np.array(
            [int(word) for word in path.read_text("utf-8-sig").replace(",", " ").split()]
        )


def check(indices: np.ndarray, n: int) -> np.ndarray:
    """Sorted int64 indices [f], or an error that names the first bad one.

    Args:
        indices: int [f]; a mask is refused, since its two values could be taken for rows.
        n: number of training examples.
    """
    indices = rows("forget", indices, n)
    if not len(indices):
        raise ValueError("the forget set is empty; at least one index is needed")
    _check_size(len(indices), n)
    unique, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"forget index {unique[counts > 1][0]} appears more than once")
    return unique


def _principal_axis(features: np.ndarray, component: int) -> np.ndarray:
    n, d = len(features), features[0].size
    mean = np.sum([points.sum(0) for points in _chunks(features)], 0) / n
    if n < d:
        return np.linalg.svd(_points(features) - mean, full_matrices=False)[2][component]
    # The d x d scatter matrix needs a chunk in float64 at a time, an SVD all of the features.
    scatter = np.zeros((d, d))
    for points in _chunks(features):
        scatter += (points - mean).T @ (points - mean)
    which = d - 1 - component  # eigenvalues ascend
    return scipy.linalg.eigh(scatter, subset_by_index=(which, which))[1][:, 0]


def _chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    return (_points(features[i : i + _CHUNK]) for i in range(0, len(features), _CHUNK))


def _points(features: np.ndarray) -> np.ndarray:
    points = features.reshape(len(features), -1)
    return points / 255 if points.dtype == np.uint8 else points.astype(np.float64)


def _members(labels: np.ndarray, label: int, size: int) -> np.ndarray:
    members = np.flatnonzero(np.asarray(labels) == whole("forget_class", label, 0))
    if not len(members):
        raise ValueError(f"forget_class is {label}; the classes are {np.unique(labels).tolist()}")
    if not 1 <= whole("forget_size", size, 0) <= len(members):
        raise ValueError(
            f"forget_size is {size}; class {label} has {len(members)} training examples"
        )
    return members


def _check_size(size: int, n: int) -> None:
    if not 1 <= whole("forget_size", size, 0) < whole("n", n, 0):
        raise ValueError(
            f"forget_size is {size}; the training set has {n} examples, 1 to {n - 1} may go"
        )
