"""The corruptions image by image in NumPy, SciPy and Pillow: the arithmetic of the published sets.

Float64 images in [0, 1], the fraction of a level cut off at the end. OpenCV's filters are SciPy's
here, and ImageMagick's motion blur is its sum of shifted copies. Every function takes an image
uint8 [H, H, 3], the constants of `jaxunlearn.data.corruptions.constants` and NumPy's old generator,
which the published code draws from.
"""

import io
import math

import numpy as np
from PIL import Image
from scipy import ndimage


def _photo() -> bytes:
    """An encoded picture of the size of a published photo of ice, which it stands for."""
    small = np.random.default_rng(0).integers(60, 255, (60, 90, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((900, 600), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


PHOTO = _photo()


def corrupted(
    name: str, image: np.ndarray, c: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """One image, uint8 [H, H, 3]."""
    return np.asarray(globals()[name](image, c, rng)).astype(np.uint8)


def _cut(x):
    return np.clip(x, 0, 1) * 255


def gaussian_noise(image, c, rng):
    x = image / 255.0
    return _cut(x + rng.normal(size=x.shape, scale=c[0]))


def speckle_noise(image, c, rng):
    x = image / 255.0
    return _cut(x + x * rng.normal(size=x.shape, scale=c[0]))


def shot_noise(image, c, rng):
    return _cut(rng.poisson(image / 255.0 * c[0]) / c[0])


def impulse_noise(image, c, rng):
    x = image / 255.0
    lost = rng.random_sample(x.shape) <= c[0]
    white = rng.random_sample(x.shape) <= 0.5
    x[lost & white], x[lost & ~white] = 1, 0
    return _cut(x)


def _gaussian(x, sigma, **options):
    return ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], **options)


def gaussian_blur(image, c, rng):
    return _cut(_gaussian(image / 255.0, c[0], mode="nearest"))


def defocus_blur(image, c, rng):
    radius, sigma = c
    grid = 8 if radius <= 8 else int(radius)
    offsets = np.arange(-grid, grid + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    width = np.arange(3) - 1 if radius <= 8 else np.arange(5) - 2
    weights = np.exp(-(width**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights, axis, mode="mirror")
    used = np.flatnonzero(disk.any(0))
    disk = disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
    planes = [ndimage.correlate(plane, disk, mode="mirror") for plane in (image / 255.0).T]
    return _cut(np.stack(planes).T)


def glass_blur(image, c, rng):
    sigma, distance, rounds = c[0], int(c[1]), int(c[2])
    x = (_gaussian(image / 255.0, sigma, mode="nearest") * 255).astype(np.uint8)
    size = len(x)
    for _ in range(rounds):
        for row in range(size - distance, distance, -1):
            for column in range(size - distance, distance, -1):
                right, down = rng.randint(-distance, distance, 2)
                x[row, column] = x[row + down, column + right]  # an exchange of views copies
    return _cut(_gaussian(x / 255.0, sigma, mode="nearest"))


def _moved(x, radius, sigma, degrees):
    """ImageMagick's motion blur of whole levels, rounded."""
    n, angle = 2 * math.ceil(radius) + 1, math.radians(degrees)
    weights = np.exp(-(np.arange(n) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    reach = np.arange(len(x))
    total = np.zeros(x.shape)
    for i, weight in enumerate(weights):
        down = math.ceil(i * math.sin(angle) - 0.5)
        right = math.ceil(i * math.cos(angle) - 0.5)
        rows, columns = (np.clip(reach + shift, 0, len(x) - 1) for shift in (down, right))
        total += weight * x[rows][:, columns]
    return np.floor(total + 0.5)


def motion_blur(image, c, rng):
    return _moved(image, c[0], c[1], rng.uniform(-45, 45))


def _zoomed(x, factor):
    size = len(x)
    kept = math.ceil(size / factor)
    first = (size - kept) // 2
    middle = x[first : first + kept, first : first + kept]
    x = np.asarray(ndimage.zoom(middle, (factor, factor, 1)[: x.ndim], order=1))
    first = (len(x) - size) // 2
    return x[first : first + size, first : first + size]


def zoom_blur(image, c, rng):
    x = (image / 255.0).astype(np.float32)
    n, step = int(c[0]), c[1]
    total = np.zeros_like(x)
    for factor in np.arange(1, 1 + step * (n - 0.5), step):
        total += _zoomed(x, factor)
    return _cut((x + total) / np.float32(n + 1))


def snow(image, c, rng):
    x = image.astype(np.float32) / 255
    layer = _zoomed(rng.normal(size=x.shape[:2], loc=c[0], scale=c[1]), c[2])
    layer = (np.clip(np.where(layer < c[3], 0, layer), 0, 1) * 255).astype(np.uint8)
    layer = _moved(layer, c[4], c[5], rng.uniform(-135, -45))[..., None] / 255
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    x = c[6] * x + (1 - c[6]) * np.maximum(x, 1.5 * grey + 0.5)
    return _cut(x + layer + np.rot90(layer, 2))


def frost(image, c, rng):
    """As published, a photo is decoded for every image; small images take a fifth of it."""
    size = len(image)
    ice = np.asarray(Image.open(io.BytesIO(PHOTO)))
    ice = ice[2::5, 2::5] if size < 100 else ice
    row, column = (rng.randint(0, side - size) for side in ice.shape[:2])
    return np.clip(c[0] * image + c[1] * ice[row : row + size, column : column + size], 0, 255)


def _plasma(size, decay, rng):
    side = 1 << (size - 1).bit_length()
    heights = np.zeros((side, side))
    step, wibble = side, 100.0

    def filled(four):
        return four / 4 + wibble * rng.uniform(-wibble, wibble, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = filled(pairs + np.roll(pairs, -1, 1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        beside = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = filled(beside)
        under = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = filled(under)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights[:size, :size] / heights.max()


def fog(image, c, rng):
    x = image / 255.0
    top = x.max()
    x += c[0] * _plasma(len(x), c[1], rng)[..., None]
    return _cut(x * top / (top + c[0]))


def _hsv(x):
    value, spread = x.max(-1), np.ptp(x, axis=-1)
    red, green, blue = np.moveaxis(x, -1, 0)
    some = np.where(spread > 0, spread, 1)
    hue = np.where(value == red, (green - blue) / some, 0)
    hue = np.where(value == green, 2 + (blue - red) / some, hue)
    hue = np.where(value == blue, 4 + (red - green) / some, hue)
    hue = np.where(spread > 0, hue / 6 % 1, 0)
    return hue, np.where(spread > 0, spread / np.where(value > 0, value, 1), 0), value


def _rgb(hue, saturation, value):
    sector = np.floor(hue * 6)
    f = hue * 6 - sector
    low = value * (1 - saturation)
    falls, rises = value * (1 - f * saturation), value * (1 - (1 - f) * saturation)
    sector = sector.astype(int) % 6
    channels = (
        (value, falls, low, low, rises, value),
        (rises, value, value, falls, low, low),
        (low, low, rises, value, value, falls),
    )
    return np.stack([np.choose(sector, channel) for channel in channels], -1)


def brightness(image, c, rng):
    hue, saturation, value = _hsv(image / 255.0)
    return _cut(_rgb(hue, saturation, np.clip(value + c[0], 0, 1)))


def saturate(image, c, rng):
    hue, saturation, value = _hsv(image / 255.0)
    return _cut(_rgb(hue, np.clip(saturation * c[0] + c[1], 0, 1), value))


def contrast(image, c, rng):
    x = image / 255.0
    mean = x.mean((0, 1), keepdims=True)
    return _cut((x - mean) * c[0] + mean)


def elastic_transform(image, c, rng):
    x = image.astype(np.float32) / 255
    size = len(x)
    height, sigma, shift = size * c
    corners = size // 2 + size // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-shift, shift, (3, 2))
    matrix = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).T  # reads backwards
    y, x_ = np.mgrid[:size, :size]
    rows, columns = (matrix[axis] @ [x_.ravel(), y.ravel(), np.ones(size**2)] for axis in (1, 0))
    x = np.stack([ndimage.map_coordinates(p, (columns, rows), order=1, mode="mirror") for p in x.T])
    fields = [
        _gaussian(rng.uniform(-1, 1, (size, size)), sigma, mode="reflect", truncate=3) * height
        for _ in range(2)
    ]
    at = (y + fields[0], x_ + fields[1])
    planes = [
        ndimage.map_coordinates(p.reshape(size, size), at, order=1, mode="reflect") for p in x
    ]
    return _cut(np.stack(planes, -1))


def pixelate(image, c, rng):
    size = len(image)
    small = int(size * c[0])
    reduced = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(reduced.resize((size, size), Image.Resampling.BOX))


def jpeg_compression(image, c, rng):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=int(c[0]))
    return np.asarray(Image.open(stream))
