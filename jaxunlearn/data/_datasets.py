"""Data sets as arrays."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.data import _cache, _tfds, _user_files
from jaxunlearn.data._decode import Arrays, Encoded, scaled, two_sizes
from jaxunlearn.data._notices import notice

DEFAULT_SIZE = 32
"""What verbs scale the pictures of a folder to where they are of several sizes and none is said."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification set, split into train and validation.

    Attributes:
        name: what it is called.
        x_train: [n, H, W, C], uint8 for image sets (a program converts the batch it reads), or
            float32 in [0, 1]; it may be read-only.
        y_train: int32 [n].
        x_val: [m, H, W, C], the same type.
        y_val: int32 [m].
        n_classes: number of classes.
        files_train: for a folder of images, the file of every row of `x_train`, relative to it;
            otherwise empty.
        files_val: likewise.
        classes: for a folder of images, the names of its classes; otherwise empty.
        sizes: examples of each part of the source: `train` and `val`, or `all` in one piece.
        rows_train: the place of every row of `x_train` in its part of the source, int [n].
        rows_val: likewise.
        size: height and width that images were scaled to; None: they are as they were.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    n_classes: int
    files_train: tuple[str, ...] = ()
    files_val: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rows_train: np.ndarray | None = None
    rows_val: np.ndarray | None = None
    size: int | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        """Everything that training and validation read."""
        return [self.x_train, self.y_train, self.x_val, self.y_val]


def load(
    name: str | os.PathLike,
    n_train: int | None = None,
    n_val: int | None = None,
    *,
    size: int | None = None,
    default_size: int | None = None,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | Literal[False] | None = None,
) -> Dataset:
    """Loads a data set, the same split at every call.

    Args:
        name: one of

            - "digits": scikit-learn's 1,797 handwritten digits, 8x8, embedded in the package;
            - an image classification set of tensorflow_datasets prepared in `data_dir`, e.g.
              "cifar10", "name/config" or "name:version": train, and test or else validation;
            - the path of an `.npz` file with `x_train, y_train, x_val, y_val`, or `x, y`: images
              [n, H, W] or [n, H, W, C], uint8 or floats in [0, 1], integer labels;
            - the path of a folder of PNG or JPEG images, `train/<class>/*` and `test/<class>/*`
              (or `val`, `validation`), or `<class>/*`; classes are numbered by name, and in the
              order of the numbers if all names are numbers. Pictures are turned as their EXIF data
              say, and have an alpha channel where pixels may be transparent.

            A string that names a prepared set and a path means the set.
        n_train: training examples, the first of a fixed permutation. None: all; of a source in one
            piece four fifths, and 1200 of digits.
        n_val: validation examples, likewise. None: all that are no training examples.
        size: height and width that images are scaled to, bilinearly; those of a folder may then be
            of several sizes. None: as they are.
        default_size: `size`, where that is None, of a folder whose pictures are of several sizes;
            it is said on stderr. None: such a folder is refused.
        data_dir: prepared sets; default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        cache_dir: where decoded images are kept, so that a set is decoded once; default
            `$JAXUNLEARN_CACHE`, else `jaxunlearn` in `$XDG_CACHE_HOME` or `~/.cache`. False: they
            are decoded every time and written nowhere.

    Raises:
        ValueError: the name, a size or the data is not as described above; the message says what
            to do, e.g. the command that prepares a set.
    """
    for argument, value in {"size": size, "default_size": default_size}.items():
        if value is not None:
            checks.at_least(argument, value, 1)
    if name == "digits":
        arrays = _scaled(_digits(), size)
        made = _chosen("digits", arrays, 10, 1200 if n_train is None else n_train, n_val)
        return dataclasses.replace(made, size=size)
    source = _open(name, _tfds.data_folder(data_dir))
    if isinstance(source, Encoded):
        _sizes(str(name), source.sizes, n_train, n_val)  # before hours of decoding
        if size is None and default_size is not None:
            size = _size_of(source, default_size)
        arrays = _cache.load(source if size is None else source.scaled_to(size), cache_dir)
        made = _chosen(str(name), arrays, source.n_classes, n_train, n_val, source.names)
        return dataclasses.replace(made, classes=source.classes, size=size)
    arrays, n_classes = source
    made = _chosen(str(name), _scaled(arrays, size), n_classes, n_train, n_val)
    return dataclasses.replace(made, size=size)


def local_path(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> Path | None:
    """The file or folder, resolved, that a name means to `load`; None where it means a set."""
    path = Path(os.path.expanduser(name))
    if name == "digits" or not path.exists():
        return None
    if isinstance(name, str) and _tfds.find(name, _tfds.data_folder(data_dir)):
        return None
    return path.resolve()


def _open(name: str | os.PathLike, folder: Path) -> Encoded | tuple[Arrays, int]:
    place = _tfds.find(name, folder) if isinstance(name, str) else None
    if isinstance(name, str) and place:
        return _tfds.open_prepared(name, place, folder)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _user_files.folder(path)
    if path.is_file():
        return _user_files.npz(path)
    prepared = ", ".join(_tfds.prepared(folder)) or "none"
    if isinstance(name, str) and _tfds.is_known(name):
        raise ValueError(
            f"data is {name!r}, which is not prepared in {folder} (prepared there: {prepared}); "
            + _tfds.how_to_prepare(name, folder)
        )
    raise ValueError(
        f"data is {str(name)!r}; known data sets: digits, those prepared in {folder} ({prepared}), "
        "other image sets of tensorflow_datasets once prepared, an existing .npz file or folder "
        "of images"
    )


def _size_of(source: Encoded, default: int) -> int | None:
    """The size that a folder's pictures are scaled to where they have several, which is said."""
    sizes = two_sizes(source.files) if source.names else ()  # prepared sets have one
    if len(sizes) < 2:
        return None
    found = " and ".join(f"{width}x{height}" for width, height in sizes)
    notice(
        f"{source.name}: pictures have several sizes, {found} among them; all are scaled to "
        f"{default}x{default} (`size` says otherwise)"
    )
    return default


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    return {"x_all": x, "y_all": labels.astype(np.int32)}


def _scaled(arrays: Arrays, size: int | None) -> Arrays:
    if size is None:
        return arrays
    images = {name: array for name, array in arrays.items() if name.startswith("x_")}
    return arrays | {
        name: np.stack([scaled(one, size, size) for one in array]) for name, array in images.items()
    }


def _chosen(
    name: str,
    arrays: Arrays,
    n_classes: int,
    n_train: int | None,
    n_val: int | None,
    files: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Dataset:
    # The arrays are those of a split set (train, val) or of one that is still whole (all).
    sizes = {key[2:]: len(array) for key, array in arrays.items() if key.startswith("x_")}
    n_train, n_val = _sizes(name, sizes, n_train, n_val)
    if "all" in sizes:
        order = np.random.default_rng(0).permutation(sizes["all"])  # files come in runs
        parts = [("all", order[:n_train]), ("all", order[n_train : n_train + n_val])]
    else:
        wanted = {"train": n_train, "val": n_val}
        parts = [(split, _first(sizes[split], n)) for split, n in wanted.items()]
    (x, y), (x_val, y_val) = (
        (arrays[f"x_{split}"][chosen], arrays[f"y_{split}"][chosen]) for split, chosen in parts
    )
    rows, rows_val = (np.arange(sizes[split])[chosen] for split, chosen in parts)
    names, names_val = (
        tuple(files[split][i] for i in at) if files else ()
        for (split, _), at in zip(parts, (rows, rows_val), strict=True)
    )
    return Dataset(
        name,
        x,
        y,
        x_val,
        y_val,
        n_classes,
        names,
        names_val,
        sizes=sizes,
        rows_train=rows,
        rows_val=rows_val,
    )


def _first(size: int, n: int) -> Any:
    """The first n of a fixed order; all, as they are, without a copy."""
    return slice(None) if n == size else np.random.default_rng(0).permutation(size)[:n]


def _sizes(
    name: str, sizes: dict[str, int], n_train: int | None, n_val: int | None
) -> tuple[int, int]:
    if "all" in sizes and n_train is None:
        n_train = max(1, min(sizes["all"] * 4 // 5, sizes["all"] - (n_val or 1)))
    most = sizes["all"] - 1 if "all" in sizes else sizes["train"]
    n_train = _in_range("n_train", n_train, name, most)
    most = sizes["all"] - n_train if "all" in sizes else sizes["val"]
    return n_train, _in_range("n_val", n_val, name, most)


def _in_range(argument: str, n: int | None, name: str, most: int) -> int:
    if n is None:
        return most
    if not 1 <= n <= most:
        raise ValueError(f"{argument} is {n}; {name} allows 1 to {most}")
    return n
