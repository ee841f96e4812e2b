"""The user's own data: an `.npz` file, or a folder of images."""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxunlearn.core.readers import read_npz, reading
from jaxunlearn.data._decode import (
    MODES,
    Arrays,
    Encoded,
    Item,
    described,
    pixels,
    scaled,
    with_alpha_of,
)
from jaxunlearn.data._notices import notice

_ENDINGS = (".png", ".jpg", ".jpeg")
_HELD_OUT = ("test", "val", "validation")
_ARRAYS = (("x_train", "y_train", "x_val", "y_val"), ("x", "y"))  # of an `.npz` file


def npz(path: Path) -> tuple[Arrays, int]:
    """Reads `x_train, y_train, x_val, y_val` or `x, y` and checks them.

    Returns:
        `{"x_train": [n, H, W, C], "y_train": int32 [n], ..}` (or `x_all`, `y_all`), images uint8 or
        float32, and the number of classes.

    Raises:
        ValueError: it is no such file; says what is wrong.
    """
    with reading(f"{path} cannot be read as an .npz file of arrays"):
        stored = read_npz(path, functools.partial(_wanted, path))
    arrays: Arrays = {}
    for x, y in zip(*2 * [iter(stored)], strict=True):
        split = x.partition("_")[2] or "all"
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


def _wanted(path: Path, names: list[str]) -> tuple[str, ...]:
    """Which members are read; the others are named."""
    for wanted in _ARRAYS:
        if set(wanted) <= set(names):
            if others := sorted(set(names) - set(wanted)):
                notice(f"{path} also holds {others}, which is not read")
            return wanted
    raise ValueError(
        f"it holds {sorted(names)}; x_train, y_train, x_val and y_val, or x and y, are needed"
    )


def _images(what: str, x: np.ndarray) -> np.ndarray:
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"{what} is {list(x.shape)}; images [n, H, W] or [n, H, W, C] are needed")
    x = x[..., None] if x.ndim == 3 else x
    _, height, width, channels = x.shape
    is_square = height < width == channels
    if is_square or (height != width and height <= max(MODES) < channels):
        raise ValueError(
            f"{what} is {list(x.shape)}, which looks like PyTorch's [n, C, H, W]; [n, H, W, C] is "
            f"needed, {what.partition(' ')[0]}.transpose(0, 2, 3, 1)"
        )
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

    What lies beside `train` and the held-out folder is not read, which is said on stderr.

    Raises:
        ValueError: it has another layout, a file that is no PNG or JPEG, or a broken link.
    """
    names = {child.name for child in _children(path) if child.is_dir()}
    held_out = [name for name in _HELD_OUT if name in names]
    if "train" in names and not held_out:
        raise ValueError(f"{path} has a folder train, but none of {', '.join(_HELD_OUT)}")
    places = {"train": path / "train", "val": path / held_out[0]} if "train" in names else None
    files = {split: _by_class(place) for split, place in (places or {"all": path}).items()}
    if places and (others := sorted(names - {place.name for place in places.values()})):
        notice(f"{path}: train and {held_out[0]} are read; {', '.join(others)} is not")
    classes = _numbered(path, files["train" if places else "all"])
    for extra in sorted(set().union(*files.values()) - set(classes)):
        raise ValueError(f"{path} has the class {extra!r} in {held_out[0]} only; train needs it")
    number = {name: i for i, name in enumerate(classes)}
    flat = {
        split: [(file, number[name]) for name in classes for file in of.get(name, ())]
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
    """Decodes image files that a network is to read, upright as their EXIF data say.

    An alpha channel that is opaque everywhere is dropped where the network reads none, and added
    where it does.

    Args:
        files: n PNG or JPEG files.
        shape: [H, W, C] that all of them must have.
        resize: whether images of other sizes are scaled, as `size` of `load` does.

    Returns:
        uint8 [n, H, W, C].

    Raises:
        ValueError: a file that is not there, is no image, has another size or number of channels,
            16 bits a channel, or more than 67 million pixels; it is named.
    """
    decoded = []
    for file in map(Path, files):
        if not file.is_file():
            raise ValueError(f"{file} is no file")
        image = with_alpha_of(pixels(str(file), file.read_bytes()), shape[2])
        image = scaled(image, *shape[:2]) if resize else image
        if image.shape != shape:
            raise ValueError(
                f"{file} is {described(image.shape)}; the network reads {described(shape)} "  # pyright: ignore[reportArgumentType]
                + "(`resize` scales images)" * (image.shape[2] == shape[2])
            )
        decoded.append(image)
    return np.stack(decoded)


def _numbered(path: Path, names: Iterable[str]) -> list[str]:
    """Names of classes in their order: as numbers where all of them are some, else as texts."""
    if not all(name.isascii() and name.isdigit() for name in names):
        return sorted(names)
    classes = sorted(names, key=lambda name: (int(name), name))
    if any(int(name) != i for i, name in enumerate(classes)):
        notice(f"{path}: classes are counted from 0: class 0 is the folder {classes[0]!r}")
    return classes


def _children(path: Path) -> list[Path]:
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    for child in children:
        if not child.exists():
            raise ValueError(f"{child} is a link to {os.readlink(child)!r}, which is not there")
    return children


def _by_class(path: Path) -> dict[str, list[Path]]:
    classes = {}
    for place in _children(path):
        if not place.is_dir():
            raise ValueError(f"{place} lies beside the folders of the classes; move it elsewhere")
        classes[place.name] = _children(place)
        for file in classes[place.name]:
            if file.suffix.lower() not in _ENDINGS:
                raise ValueError(f"{file} is no {', '.join(_ENDINGS)} file; move it elsewhere")
            if not file.is_file():
                raise ValueError(f"{file} is no file; move it elsewhere")
        if not classes[place.name]:
            raise ValueError(f"{place} holds no images")
    if not classes:
        raise ValueError(f"{path} holds no folders of images, one for each class")
    return classes
