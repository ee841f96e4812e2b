"""Every corruption of a batch on the device against the published arithmetic, image by image."""

import functools

import jax
import numpy as np

from benchmarks.harness import Measured, Row, agree, measure
from benchmarks.peers import numpy_corruptions
from jaxunlearn.data import corruptions

# What is timed for each family: side of the images, how many of them ours and the peer corrupt.
SIZES = {"cifar": (32, 1000, 100), "imagenet": (224, 8, 2)}
SEVERITY = 5
NAMES = [name for name in corruptions.NAMES if name != "spatter"]  # made on the host by both
EXACT = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "gaussian_blur")


def photos(size: int, n: int) -> np.ndarray:
    """Crops of scikit-learn's two photos, scaled down for small ones, uint8 [n, size, size, 3]."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    width = 640 if size > 100 else 160
    scaled = [
        np.asarray(Image.fromarray(photo).resize((width, width * 2 // 3)))
        for photo in load_sample_images().images
    ]
    crops = []
    for i in range(n):
        photo = scaled[i % 2]
        row, column = (rng.integers(side - size + 1) for side in photo.shape[:2])
        crops.append(photo[row : row + size, column : column + size])
    return np.stack(crops)


def peer_of(name: str, family: str, images: np.ndarray) -> np.ndarray:
    c = corruptions.constants(name, family, SEVERITY)
    rng = np.random.RandomState(1)
    return np.stack([numpy_corruptions.corrupted(name, image, c, rng) for image in images])


def row(name: str, family: str) -> Row:
    """One corruption; the peer corrupts some of the images, and its times are extrapolated.

    Deterministic ones must be equal but for 0.3 % of the values. Of random ones the mean change is
    compared, which lies within five standard errors (their laws are compared in the tests).
    """
    size, n, n_peer = SIZES[family]
    images = photos(size, n)
    ours = functools.partial(corruptions.apply, name, images, SEVERITY, jax.random.key(0), family)
    made, peer = np.asarray(ours())[:n_peer], peer_of(name, family, images[:n_peer])
    what = f"{name}, {n:,} images of {size}x{size} ({family})"
    if name in EXACT:
        gap, note = agree(what, (made != peer).mean(), 0, 0.003), "gap: share of the values"
    else:
        change = (np.asarray(ours()) - images.astype(float)).mean((1, 2, 3))
        error = change.std() * (1 / n + 1 / n_peer) ** 0.5
        theirs = (peer - images[:n_peer].astype(float)).mean()
        tolerance = 255 if name == "frost" else 1 + 5 * error  # no photo is like another
        gap, note = agree(what, change.mean(), theirs, tolerance), "gap: of the means, levels"
    jax.clear_caches()
    timed = measure(lambda: ours().block_until_ready())
    beside = measure(lambda: peer_of(name, family, images[:n_peer]), repeats=3)
    beside = _scaled(beside, n / n_peer, f"NumPy, {n_peer} images, extrapolated")
    return Row(what, timed, beside, "image by image", gap, target=5.0, note=note)


def _scaled(measured: Measured, factor: float, note: str) -> Measured:
    low, high = measured.spread
    return Measured(
        factor * measured.first,
        factor * measured.steady,
        (factor * low, factor * high),
        measured.compile,
        note,
    )


def _together(family: str, table: list[Row], *without: str) -> Row:
    """All corruptions of a family but some, in one row."""
    size, n, _ = SIZES[family]
    table = [row for row in table if not row.name.startswith(without)]
    ours, peer = (_sum([getattr(row, side) for row in table]) for side in ("ours", "peer"))
    what = f"all {len(table)} but {' and '.join(without)}, {n:,} images of {size}x{size} ({family})"
    return Row(what, ours, peer, "image by image", max(row.gap for row in table), target=5.0)


def _sum(times: list[Measured]) -> Measured:
    first, steady, low, high = (
        sum(column)
        for column in zip(*((one.first, one.steady, *one.spread) for one in times), strict=True)
    )
    return Measured(first, steady, (low, high), 0.0, times[0].note)


def rows():
    """The rows of the table."""
    for family in SIZES:
        table = []
        for name in NAMES:
            table.append(row(name, family))
            yield table[-1]
        yield _together(family, table, "frost")  # where the peer mostly decodes photos
        yield _together(family, table, "frost", "glass_blur")  # whose pixels Python loops over
