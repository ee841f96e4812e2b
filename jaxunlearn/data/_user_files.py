"""The user's own data: an `.npz` file, or a folder of images."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxunlearn.data._decode import Arrays, Encoded, Item, described, pixels, scaled

_ENDINGS = (".png", ".jpg", ".jpeg")
_HELD_OUT = ("test", "val", "validation")


def npz(path: Path) -> tuple[Arrays, int]:
    """Reads `x_train, y_train, x_val, y_val` or `x, y` and checks them.

    Returns:
        `{"x_train": [n, H, W, C], "y_train": int32 [n], ..}` (or `x_all`, `y_all`), images uint8 or
        float32, and the number of classes.

    Raises:
        ValueError: it is no such file; says what is wrong.
    """
    stored = _npz_arrays(path)
    if {"x_train", "y_train", "x_val", "y_val"} <= set(stored):
        splits = {"train": ("x_train", "y_train"), "val": ("x_val", "y_val")}
    elif {"x", "y"} <= set(stored):
        splits = {"all": ("x", "y")}
    else:
        raise ValueError(
            f"{path} holds {sorted(stored)}; x_train, y_train, x_val and y_val, or x and y, are "
            "needed"
        )
    arrays: Arrays = {}
    for split, (x, y) in splits.items():
        arrays[f"x_{split}"] = _images(f"{x} of {path}", stored[x])
        arrays[f"y_{split}"] = _labels(f"{y} of {path}", stored[y])
        if len(stored[x]) != len(stored[y]):
            raise ValueError(f"{path} has {len(stored[x])} {x} but {len(stored[y])} {y}")
    kinds = {f"{x.dtype}{list(x.shape[1:])}" for k, x in arrays.items() if k.startswith("x_")}
    if len(kinds) > 1:
        raise ValueError(f"{path} has x_train and x_val of {sorted(kinds)}; they must be alike")
    return arrays, _n_classes(path, arrays)


def _n_classes(path: Path, arrays: Arrays) -> int:
    """How many classes there are; labels count from 0, and training has each of them."""
    labels = np.unique(arrays["y_train" if "y_train" in arrays else "y_all"])
    n_classes = len(labels)
    if labels[-1] != n_classes - 1 or n_classes < 2:
        raise ValueError(
            f"{path} has {n_classes} different labels from {labels[0]} to {labels[-1]}; at least 2 "
            "are needed, and K classes are labelled 0 to K - 1"
        )
    if "y_val" in arrays and arrays["y_val"].max() >= n_classes:
        raise ValueError(
            f"{path} has the label {arrays['y_val'].max()} in y_val, but y_train has {n_classes} "
            "classes"
        )
    return n_classes


def _npz_arrays(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except Exception as error:  # a damaged archive can make either raise almost anything
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


def _images(what: str, x: np.ndarray) -> np.ndarray:
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"{what} is {list(x.shape)}; images [n, H, W] or [n, H, W, C] are needed")
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{what} is {x.dtype}; uint8, or floats in [0, 1], are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{what} holds NaN or infinity")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise ValueError(f"{what} lies in [{low:.6g}, {high:.6g}]; floats must lie in [0, 1]")
    return x.astype(np.float32)


def _labels(what: str, y: np.ndarray) -> np.ndarray:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{what} is {y.dtype}{list(y.shape)}; integers [n] are needed")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= 2**31:
        raise ValueError(f"{what} lies in [{low}, {high}]; labels count from 0")
    return y.astype(np.int32)


def folder(path: Path) -> Encoded:
    """A folder of images, `train/<class>/*` with `test/<class>/*`, or `<class>/*`.

    Raises:
        ValueError: it has another layout, or a file that is no PNG or JPEG.
    """
    names = {child.name for child in _children(path) if child.is_dir()}
    held_out = [name for name in _HELD_OUT if name in names]
    if "train" in names and not held_out:
        raise ValueError(f"{path} has a folder train, but none of {', '.join(_HELD_OUT)}")
    places = {"train": path / "train", "val": path / held_out[0]} if "train" in names else None
    files = {split: _by_class(place) for split, place in (places or {"all": path}).items()}
    classes = sorted(files["train" if places else "all"])
    for extra in sorted(set().union(*files.values()) - set(classes)):
        raise ValueError(f"{path} has the class {extra!r} in {held_out[0]} only; train needs it")
    number = {name: i for i, name in enumerate(classes)}
    flat = {
        split: [(file, number[name]) for name in sorted(of) for file in of[name]]
        for split, of in files.items()
    }
    first = next(iter(flat.values()))[0][0]

    def read(split: str) -> Iterator[Item]:
        return ((str(file), file.read_bytes(), label) for file, label in flat[split])

    return Encoded(
        name=path.name or "images",
        root=path,
        files=tuple(file for items in flat.values() for file, _ in items),
        sizes={split: len(items) for split, items in flat.items()},
        shape=pixels(str(first), first.read_bytes()).shape,  # pyright: ignore[reportArgumentType]
        shape_of=str(first),
        n_classes=len(classes),
        read=read,
        names={
            split: tuple(file.relative_to(path).as_posix() for file, _ in items)
            for split, items in flat.items()
        },
        classes=tuple(classes),
    )


def images(
    files: Sequence[str | os.PathLike], shape: tuple[int, int, int], *, resize: bool = False
) -> np.ndarray:
    """Decodes image files that a network is to read.

    Args:
        files: n PNG or JPEG files.
        shape: [H, W, C] that all of them must have.
        resize: whether images of other sizes are scaled, as `size` of `load` does.

    Returns:
        uint8 [n, H, W, C].

    Raises:
        ValueError: a file that is not there, is no image, or has another size or number of
            channels; it is named.
    """
    decoded = []
    for file in map(Path, files):
        if not file.is_file():
            raise ValueError(f"{file} is no file")
        image = pixels(str(file), file.read_bytes())
        image = scaled(image, *shape[:2]) if resize else image
        if image.shape != shape:
            raise ValueError(
                f"{file} is {described(image.shape)}; the network reads {described(shape)} "  # pyright: ignore[reportArgumentType]
                + "(`resize` scales images)" * (image.shape[2] == shape[2])
            )
        decoded.append(image)
    return np.stack(decoded)


def _children(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if not child.name.startswith("."))


def _by_class(path: Path) -> dict[str, list[Path]]:
    classes = {}
    for place in _children(path):
        if not place.is_dir():
            raise ValueError(f"{place} lies beside the folders of the classes; move it elsewhere")
        classes[place.name] = _children(place)
        for file in classes[place.name]:
            if file.suffix.lower() not in _ENDINGS:
                raise ValueError(f"{file} is no {', '.join(_ENDINGS)} file; move it elsewhere")
        if not classes[place.name]:
            raise ValueError(f"{place} holds no images")
    if not classes:
        raise ValueError(f"{path} holds no folders of images, one for each class")
    return classes
