"""Data sets as arrays."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification set, split into train and validation.

    Attributes:
        name: what it is called.
        x_train: float32 [n, H, W, C], scaled to [0, 1].
        y_train: int32 [n].
        x_val: float32 [m, H, W, C].
        y_val: int32 [m].
        n_classes: number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    n_classes: int


def _digits() -> tuple[np.ndarray, np.ndarray, int]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    return x, labels.astype(np.int32), 10


_SOURCES = {"digits": _digits}


def load(name: str, n_train: int) -> Dataset:
    """Loads a data set and splits it, the same way at every call.

    Args:
        name: "digits" (scikit-learn's 1,797 handwritten digits, 8x8, embedded in the package).
        n_train: training examples; the rest is validation.

    Raises:
        ValueError: an unknown name, or a train size that leaves no validation example.
    """
    if name not in _SOURCES:
        raise ValueError(f"data is {name!r}; known data sets: {', '.join(_SOURCES)}")
    x, y, n_classes = _SOURCES[name]()
    if not 1 <= n_train < len(x):
        raise ValueError(f"n_train is {n_train}; {name} allows 1 to {len(x) - 1}")
    order = np.random.default_rng(0).permutation(len(x))  # writers come in runs
    x, y = x[order], y[order]
    return Dataset(name, x[:n_train], y[:n_train], x[n_train:], y[n_train:], n_classes)
