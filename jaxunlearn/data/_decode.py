"""Encoded images (PNG or JPEG) to arrays, whatever they are stored in."""

import contextlib
import dataclasses
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core.readers import reading

Arrays = dict[str, np.ndarray]
Item = tuple[str, bytes, int]  # where it stands (for errors), the encoded image, its label

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels: Pillow's name
MOST_PIXELS = 2**26  # of one image; the cameras of phones have 50 million
_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "CMYK": 3, "YCbCr": 3, "LA": 4, "RGBA": 4}
_ORIENTATION = 274  # EXIF's tag
_TURNED = (5, 6, 7, 8)  # orientations that are stored with width and height exchanged
# What turns an image that is stored in each of its orientations upright.
_UPRIGHT: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A classification set whose images are still encoded.

    Attributes:
        name: what it is called in messages.
        root: the folder it lies in.
        files: all files that it is made of.
        sizes: `{split: number of images}`.
        shape: [H, W, C] that all images must have, after scaling.
        shape_of: what says so, for errors.
        n_classes: number of classes.
        read: `read(split)` yields the split's items in order.
        convert: whether images are converted to C channels, or must have them.
        names: `{split: file of every image}`, relative to `root`; empty where images have none.
        classes: names of the classes, likewise.
        size: height and width that images are scaled to, see `scaled_to`; None: as they are.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    sizes: dict[str, int]
    shape: tuple[int, int, int]
    shape_of: str
    n_classes: int
    read: Callable[[str], Iterator[Item]]
    convert: bool = False
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()
    size: int | None = None

    def scaled_to(self, size: int) -> "Encoded":
        """The same set with images of any size, scaled to one."""
        return dataclasses.replace(self, size=size, shape=(size, size, self.shape[-1]))

    @property
    def n_images(self) -> int:
        """Images of all splits."""
        return sum(self.sizes.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of the decoded images."""
        return self.n_images * math.prod(self.shape)


def decode(encoded: Encoded) -> Arrays:
    """Decodes all splits, with a progress bar on stderr if that is a terminal.

    Returns:
        `{"x_<split>": uint8 [n, H, W, C], "y_<split>": int32 [n]}`.

    Raises:
        ValueError: an image cannot be decoded or has another shape, a label is out of range, or all
            images together are larger than the machine's memory.
    """
    from rich.console import Console
    from rich.progress import Progress

    if encoded.n_bytes > _memory():
        raise ValueError(
            f"{encoded.root}: its {encoded.n_images:,} images of {described(encoded.shape)} are "
            f"{encoded.n_bytes / 1e9:.3g} GB, more than this machine's memory; give `size`"
        )
    arrays = {}
    console = Console(file=sys.stderr)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress:
        task = progress.add_task("decoding", total=encoded.n_images)
        for split, size in encoded.sizes.items():
            with reading(encoded.root):
                x, y = np.empty((size, *encoded.shape), np.uint8), np.empty(size, np.int32)
            for i, item in enumerate(encoded.read(split)):
                x[i], y[i] = _image(encoded, item), _label(encoded, item)
                progress.advance(task)
            arrays |= {f"x_{split}": x, f"y_{split}": y}
    return arrays


def _memory() -> float:
    """Bytes of the machine's memory, where that can be known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # another system than Unix
        return math.inf


def _label(encoded: Encoded, item: Item) -> int:
    where, _, label = item
    if not 0 <= label < encoded.n_classes:
        raise ValueError(
            f"{where} has the label {label}; allowed are 0 to {encoded.n_classes - 1} (a set "
            "without labels cannot be used)"
        )
    return label


def _image(encoded: Encoded, item: Item) -> np.ndarray:
    where, data, _ = item
    n_channels = encoded.shape[-1]
    image = pixels(where, data, MODES[n_channels] if encoded.convert else None)
    image = with_alpha_of(image, n_channels)
    if encoded.size is not None:
        image = scaled(image, encoded.size, encoded.size)
    if image.shape != encoded.shape:
        raise ValueError(
            f"{where} is {described(image.shape)}, but {encoded.shape_of} is "
            f"{described(encoded.shape)}; all images must have one "
            + (
                "size, resize them first or give `size`"
                if image.shape[2] == encoded.shape[2]
                else "number of channels, convert them first"
            )
        )
    return image


def scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image in another size, [height, width, C]: bilinear; what is made smaller is smoothed.

    It is computed in float32; the result is of the image's type.
    """
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    how = Image.Resampling.BILINEAR
    kind = np.uint8 if image.dtype == np.uint8 else np.float32
    resized = []
    for c in range(image.shape[2]):  # one at a time: in float32 an image takes four times its room
        plane = Image.fromarray(image[:, :, c].astype(kind)).convert("F")
        resized.append(np.asarray(plane.resize((width, height), how)))
    joined = np.stack(resized, axis=-1)
    return np.round(joined).astype(np.uint8) if image.dtype == np.uint8 else joined


def described(shape: tuple[int, ...]) -> str:
    """A shape [H, W, C] in words."""
    height, width, channels = shape
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)}"


def pixels(where: str, data: bytes, mode: str | None = None) -> np.ndarray:
    """Decodes one PNG or JPEG image, `where` in errors: uint8 [H, W, C].

    The mode is Pillow's name of the wanted channels, as prepared sets have them. None is for images
    as people see them: with their own channels, but RGB of palettes, CMYK and YCbCr, and RGBA where
    pixels may be transparent (an alpha channel, also of grey images, or a tRNS chunk, also of
    palettes); turned as their EXIF data say, unless those are broken.

    Raises:
        ValueError: no image, a truncated one, one of other than 8 bits a channel, or one of more
            than `MOST_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    # Pillow warns of broken parts that do not matter here
    with reading(f"{where} cannot be decoded"), warnings.catch_warnings(action="ignore"):
        try:
            opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        except UnidentifiedImageError:
            raise ValueError("it is no PNG or JPEG") from None
        with opened as image:
            _check_size(image)
            stored, is_own = _mode(image), mode is None
            mode = mode or stored
            array = np.asarray(image if image.mode == mode else image.convert(mode))
            orientation = _orientation(image) if is_own else 1
        array = _UPRIGHT.get(orientation, lambda x: x)(array)
        return array[:, :, None] if array.ndim == 2 else array


def two_sizes(files: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Width and height, upright, of the first image and of the first one that differs, if one does.

    Only what stands before the pixels is read; files that cannot be are left to `pixels`.
    """
    from PIL import Image

    first = None
    for file in files:
        with contextlib.suppress(Exception), Image.open(file, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for EXIF data behind its pixels.
            has_exif = image.format == "JPEG" or "exif" in image.info
            if width != height and has_exif and _orientation(image) in _TURNED:
                width, height = height, width
            first = first or (width, height)
            if first != (width, height):
                return first, (width, height)
    return () if first is None else (first,)


def _orientation(image: Any) -> Any:
    """What the EXIF data say; that of a broken block is 1, as viewers have it."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever its readers do
        return 1
    return found if isinstance(found, int) else 1


def _check_size(image: Any) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels; at most {MOST_PIXELS:,} are read")


def _mode(image: Any) -> str:
    """Pillow's name of the channels that an image is read with."""
    if image.mode not in _CHANNELS:
        raise ValueError(f"its mode is {image.mode}; 8-bit grey, RGB or RGBA is needed")
    if any("16" in str(tile[3]) for tile in image.tile):  # Pillow would drop the lower 8
        raise ValueError("it has 16 bits a channel; convert it to 8 bits first")
    return MODES[4 if image.has_transparency_data else _CHANNELS[image.mode]]


def with_alpha_of(image: np.ndarray, n_channels: int) -> np.ndarray:
    """An image with or without an alpha channel that is opaque everywhere, as others have it."""
    if image.shape[2] == 4 and n_channels == 3 and (image[..., 3] == 255).all():
        return image[..., :3]
    if image.shape[2] == 3 and n_channels == 4:
        return np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
    return image
