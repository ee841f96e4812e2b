"""Images that are corrupted already: folders as published, or one file of a user's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.readers import reading
from jaxunlearn.data import corruptions
from jaxunlearn.tta.streams import Domain


class Files(NamedTuple):
    """Corrupted sets of one size.

    Attributes:
        names: the corruptions there are, those of ImageNet-C first and in their order.
        labels: of the n images of every domain, or None.
        read: the images of a domain, uint8 or floats [n, H, W, C].
    """

    names: tuple[str, ...]
    labels: np.ndarray | None
    read: Callable[[Domain], np.ndarray]


def opened(path: str, n: int | None, size: int | None) -> Files:
    """Looks at a folder or a file; see `Settings.corrupted`.

    Args:
        path: a folder of `.npy` files with `labels.npy` (CIFAR-10-C), one of folders
            NAME/SEVERITY/CLASS (ImageNet-C), an `.npy` file of images, or an `.npz` file with `x`,
            and with `y` where there are labels.
        n: images of each domain; None: all.
        size: height and width that pictures of folders are scaled to.

    Raises:
        ValueError: it is none of these.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix in (".npy", ".npz"):
        return _single(place, n)
    if not place.is_dir():
        raise ValueError(f"corrupted is {path!r}; a folder, an .npy or an .npz file is needed")
    arrays = [file.stem for file in place.glob("*.npy") if file.stem != "labels"]
    if arrays:
        return _arrays(place, _ordered(arrays), n)
    names = {found.parent.name for found in place.glob("**/5") if found.is_dir()}
    if not names:
        raise ValueError(
            f"corrupted is {path!r}, which has neither .npy files nor folders NAME/SEVERITY/CLASS"
        )
    return _folders(place, _ordered(names), n, size)


def _ordered(names: Sequence[str] | set[str]) -> tuple[str, ...]:
    known = [name for name in corruptions.NAMES if name in names]
    return (*known, *sorted(set(names) - set(known)))


def _arrays(place: Path, names: tuple[str, ...], n: int | None) -> Files:
    def read(domain: Domain) -> np.ndarray:
        return corruptions.from_cifar_c(place, domain.name, _whole(domain), n).images

    labels = corruptions.from_cifar_c(place, names[0], 1, n).labels
    return Files(names, labels, read)


def _folders(place: Path, names: tuple[str, ...], n: int | None, size: int | None) -> Files:
    def labelled(domain: Domain) -> corruptions.Labelled:
        return corruptions.from_imagenet_c(place, domain.name, _whole(domain), size=size)

    labels = labelled(Domain(names[0], 5)).labels
    order = np.random.default_rng(0).permutation(len(labels))[:n]  # files come class after class

    def read(domain: Domain) -> np.ndarray:
        images, own = labelled(domain)
        if not np.array_equal(own, labels):
            raise ValueError(
                f"{place / domain.name} has other images of its classes than {names[0]} has"
            )
        return images[order]

    return Files(names, labels[order], read)


def _whole(domain: Domain) -> int:
    """The severity, of which files have five."""
    return checks.one_of("severity", domain.severity, (1, 2, 3, 4, 5))


def _single(file: Path, n: int | None) -> Files:
    with reading(f"{file} cannot be read as arrays"):
        content = np.load(file, mmap_mode="r", allow_pickle=False)
        x, y = (content, None)
        if file.suffix == ".npz":
            x, y = content["x"], content["y"] if "y" in content.files else None
    if n is not None and not 1 <= n <= len(x):
        raise ValueError(f"n_val is {n}; 1 to {len(x)} are allowed")
    labels = None if y is None else np.asarray(y[:n], np.int32)
    return Files((file.stem,), labels, lambda domain: np.asarray(x[:n]))
