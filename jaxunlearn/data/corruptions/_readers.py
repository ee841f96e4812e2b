"""Corrupted sets: CIFAR-10-C and ImageNet-C as published, and any labelled set made so."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.readers import reading
from jaxunlearn.data import _cache, _user_files
from jaxunlearn.data._datasets import Dataset
from jaxunlearn.data.corruptions._apply import apply
from jaxunlearn.data.corruptions._constants import NAMES


class Labelled(NamedTuple):
    """Images and their labels.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray


def from_cifar_c(
    folder: str | os.PathLike, name: str, severity: int, n: int | None = None
) -> Labelled:
    """One corruption and severity of a folder of `.npy` files, as CIFAR-10-C is distributed.

    Args:
        folder: `NAME.npy`, uint8 [5 M, H, W, 3], M images of each severity after those of the one
            below, and `labels.npy`, [5 M] or [M].
        name: one of `NAMES` (or of any other `.npy` file of the folder).
        severity: 1 to 5.
        n: the first n images; None: all M.

    Returns:
        The images are mapped, not read: what is indexed comes from the file.

    Raises:
        ValueError: a file that is not there or has another form, or a severity or n out of range.
    """
    folder = Path(os.path.expanduser(folder))
    severity = _severity(severity)
    images, labels = (_array(folder / f"{file}.npy", folder) for file in (name, "labels"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % 5:
        raise ValueError(
            f"{folder / name}.npy is {images.dtype}{list(images.shape)}; uint8 [5 M, H, W, 3] is "
            "needed"
        )
    size = len(images) // 5
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((size,), (5 * size,)):
        raise ValueError(
            f"{folder / 'labels.npy'} is {labels.dtype}{list(labels.shape)}; integers "
            f"[{5 * size}] or [{size}] are needed"
        )
    first = (severity - 1) * size
    n = _count(n, size)
    start = first if len(labels) > size else 0
    return Labelled(images[first : first + n], labels[start : start + n].astype(np.int32))


def from_imagenet_c(
    folder: str | os.PathLike,
    name: str,
    severity: int,
    *,
    size: int | None = None,
    cache_dir: str | os.PathLike | Literal[False] | None = None,
) -> Labelled:
    """One corruption and severity of a folder `NAME/SEVERITY/CLASS/FILE`, as ImageNet-C is.

    Args:
        folder: holds a folder for each corruption; those of groups (noise, blur, ..) beside them or
            above them are looked into.
        name: the corruption's folder.
        severity: 1 to 5.
        size: height and width that images are scaled to, bilinearly; None: as they are.
        cache_dir: where the decoded images are kept, as for `data.load`.

    Returns:
        All images, class after class; classes are numbered by name (`data.load`).

    Raises:
        ValueError: a folder that is not there, or an image that cannot be read or has another size.
    """
    folder = Path(os.path.expanduser(folder))
    wanted = Path(name) / str(_severity(severity))
    places = [place for place in (folder / wanted, *folder.glob(f"*/{wanted}")) if place.is_dir()]
    if not places:
        raise ValueError(f"{folder} has no folder {wanted}; ImageNet-C has NAME/SEVERITY/CLASS/*")
    if size is not None:
        checks.at_least("size", size, 1)
    found = _user_files.folder(places[0])
    arrays = _cache.load(found if size is None else found.scaled_to(size), cache_dir)
    return Labelled(arrays["x_all"], arrays["y_all"])


def from_dataset(
    dataset: Dataset,
    name: str,
    severity: float,
    key: Key,
    family: str = "cifar",
    *,
    part: Literal["train", "val"] = "val",
    n: int | None = None,
    frost_folder: str | os.PathLike | None = None,
) -> Labelled:
    """Any labelled set corrupted on the fly.

    Args:
        dataset: square images of 1 or 3 channels, uint8 or floats, which are rounded to levels.
        name: one of `NAMES`, or "none": the images as they are.
        severity: as `apply`.
        key: as `apply`.
        family: as `apply`.
        part: which images.
        n: the first n of them; None: all.
        frost_folder: as `apply`.

    Returns:
        As many channels as the set has. A grey image is corrupted as one of three equal channels,
        of which the first is kept: its law is that of one channel.

    Raises:
        ValueError: as `apply`, another part, n out of range, or another number of channels.
    """
    checks.one_of("corruption", name, ("none", *NAMES))
    checks.one_of("part", part, ("train", "val"))
    images, labels = (
        (dataset.x_val, dataset.y_val) if part == "val" else (dataset.x_train, dataset.y_train)
    )
    n = _count(n, len(images))
    images, channels = images[:n], images.shape[3]
    if channels not in (1, 3):
        raise ValueError(f"{dataset.name} has {channels} channels; 1 or 3 can be corrupted")
    if images.dtype != np.uint8:
        images = np.round(255 * images).astype(np.uint8)
    if name != "none":
        colour = np.repeat(images, 3 // channels, axis=3)
        images = apply(name, colour, severity, key, family, frost_folder=frost_folder)
        images = np.asarray(images)[..., :channels]
    return Labelled(images, labels[:n])


def _severity(severity: int) -> int:
    checks.one_of("severity", severity, (1, 2, 3, 4, 5))
    return int(severity)


def _count(n: int | None, most: int) -> int:
    if n is not None and not 1 <= checks.whole("n", n) <= most:
        raise ValueError(f"n is {n}; 1 to {most} are allowed")
    return most if n is None else n


def _array(file: Path, folder: Path) -> np.ndarray:
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.npy"))) or "none"
        raise ValueError(f"{file} is not there; .npy files of {folder}: {there}")
    with reading(f"{file} cannot be read as an array"):
        return np.load(file, mmap_mode="r", allow_pickle=False)
