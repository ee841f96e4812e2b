"""The user's photos of ice, for `frost`."""

import functools
import os
from pathlib import Path

import numpy as np

from jaxunlearn.data._decode import pixels

_ENDINGS = (".png", ".jpg", ".jpeg")


def read(folder: str | os.PathLike, family: str, size: int) -> dict[str, np.ndarray]:
    """All photos of a folder, in the order of their names.

    Args:
        folder: PNG and JPEG files.
        family: those for "cifar" are read at a fifth of their size.
        size: what each must have at least, on both sides.

    Returns:
        `photos` uint8 [P, H, W, 3], filled up to one size, and their `sizes` int32 [P, 2].

    Raises:
        ValueError: no folder, none in it, one that cannot be decoded, or one that is too small.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise ValueError(f"frost_folder is {str(folder)!r}, which is no folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS)
    if not files:
        raise ValueError(f"frost_folder is {str(folder)!r}; it holds no {', '.join(_ENDINGS)} file")
    step = 5 if family == "cifar" else 1
    made = _decoded(tuple((file, file.stat().st_mtime_ns) for file in files), step)
    for file, (height, width) in zip(files, made["sizes"], strict=True):
        if min(height, width) < size:
            raise ValueError(
                f"{file} is {step * height}x{step * width}; photos of frost must be at least "
                f"{step * size}x{step * size} for images of {size}x{size}"
            )
    return made


@functools.lru_cache(maxsize=2)
def _decoded(files: tuple[tuple[Path, int], ...], step: int) -> dict[str, np.ndarray]:
    photos = [pixels(str(file), file.read_bytes(), "RGB") for file, _ in files]
    # A bilinear reduction to a fifth reads the middle one of five pixels.
    photos = [photo[step // 2 :: step, step // 2 :: step] for photo in photos]
    sizes = np.array([photo.shape[:2] for photo in photos], np.int32)
    padded = np.zeros((len(photos), *sizes.max(axis=0), 3), np.uint8)
    for row, photo in zip(padded, photos, strict=True):
        row[: photo.shape[0], : photo.shape[1]] = photo
    return {"photos": padded, "sizes": sizes}
