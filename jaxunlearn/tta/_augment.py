"""The augmentation of test images of CoTTA and RMT, with its random numbers given or drawn.

One draw serves a whole batch in all but the pixel noise, as torchvision does with a tensor of
several images: so one table of places and weights moves all of them. Each operation has the
arithmetic of torchvision's on tensors (brightness to gamma, `affine`, `gaussian_blur`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold

Padding = Literal["edge", "reflect"]
RADIUS = 2  # of the blur: 5 x 5 pixels
GREY = (0.2989, 0.587, 0.114)


class Factors(NamedTuple):
    """Every random number of one augmentation; what is left out changes nothing.

    Attributes:
        brightness: 1 leaves the image, 0 makes it black.
        contrast: 1 leaves it, 0 is the mean of its grey image.
        saturation: 1 leaves it, 0 makes it grey.
        hue: by what part of a full turn the hue moves, -0.5 to 0.5.
        gamma: the exponent.
        order: the order of these five, a permutation of 0 (brightness) to 4 (gamma).
        angle: degrees by which the picture turns clockwise.
        translate: whole pixels by which it moves to the right and down, (x, y).
        scale: above 1 it becomes larger.
        sigma: the blur's standard deviation in pixels; None for no blur.
        flip: whether all images are mirrored left to right.
        noise: what is added to each value in the end, [B, H, W, C]; None for nothing.
    """

    brightness: Any = 1.0
    contrast: Any = 1.0
    saturation: Any = 1.0
    hue: Any = 0.0
    gamma: Any = 1.0
    order: Any = (0, 1, 2, 3, 4)
    angle: Any = 0.0
    translate: Any = (0, 0)
    scale: Any = 1.0
    sigma: Any = None
    flip: Any = False
    noise: Any = None


def augment(
    images: jax.Array, factors: Factors | Mapping[str, Any], padding: Padding = "edge"
) -> jax.Array:
    """The augmentation of CoTTA (arXiv 2203.13591, after KATANA, arXiv 2109.08191).

    In this order: clip to [0, 1]; brightness, contrast, saturation, hue and gamma in the given
    order; pad by half the size on each side; turn, move and scale about the centre, bilinearly,
    black beyond the padding; blur; crop the centre; flip; add noise; clip. Images whose channels
    are not three have neither saturation nor hue, and are their own grey image.

    Args:
        images: floats [B, H, W, C].
        factors: the random numbers, `Factors` or a dict of its names.
        padding: what the image is padded with: its "edge", or "reflect", itself.

    Returns:
        Images of the same shape in [0, 1].

    Raises:
        ValueError: an unknown name, an order that is no permutation, noise of another shape, or an
            unknown padding.
    """
    factors = _checked(factors, images.shape)
    checks.one_of("padding", padding, ("edge", "reflect"))
    planes = jnp.clip(jnp.transpose(images, (1, 2, 3, 0)), 0, 1)  # [H, W, C, B]: long rows
    planes = coloured(planes, factors)
    planes = _moved(planes, factors, padding)
    if factors.sigma is not None:
        # As one loop, each value would be gathered anew for all that the blur makes of it.
        planes = jax.lax.optimization_barrier(planes)
        planes = blur(planes, factors.sigma, RADIUS)
    images = jnp.transpose(planes, (3, 0, 1, 2))
    if factors.noise is not None:
        images = images + factors.noise
    return jnp.clip(images, 0, 1)


def _checked(factors: Factors | Mapping[str, Any], shape: tuple[int, ...]) -> Factors:
    if not isinstance(factors, Factors):
        for name in factors:
            checks.one_of("a name of factors", name, Factors._fields)
        factors = Factors(**factors)
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(factors.order))
    if not is_traced and sorted(np.asarray(factors.order)) != [*range(5)]:
        raise ValueError(f"order is {factors.order}; a permutation of 0 to 4 is needed")
    if factors.noise is not None and np.shape(factors.noise) not in ((), shape):
        raise ValueError(f"noise is {list(np.shape(factors.noise))}; {list(shape)} is needed")
    return factors


def coloured(planes: jax.Array, factors: Factors) -> jax.Array:
    """The five colour operations in their order."""
    operations = [
        lambda x: brightness(x, factors.brightness),
        lambda x: contrast(x, factors.contrast),
        lambda x: saturation(x, factors.saturation),
        lambda x: hue(x, factors.hue),
        lambda x: gamma(x, factors.gamma),
    ]
    order = jnp.asarray(factors.order)
    take = lambda i, x: jax.lax.switch(order[i], operations, x)  # noqa: E731
    return jax.lax.fori_loop(0, len(operations), take, planes)


def brightness(planes: jax.Array, factor: Any) -> jax.Array:
    """Blends with black; planes are [H, W, C, B] here and below, factors [] or [B]."""
    return _blend(planes, 0.0, factor)


def contrast(planes: jax.Array, factor: Any) -> jax.Array:
    """Blends with the mean of the grey image."""
    return _blend(planes, jnp.mean(grey(planes), axis=(0, 1, 2), keepdims=True), factor)


def saturation(planes: jax.Array, factor: Any) -> jax.Array:
    """Blends with the grey image."""
    return _blend(planes, grey(planes), factor) if planes.shape[2] == 3 else planes


def grey(planes: jax.Array) -> jax.Array:
    """The grey image, [H, W, 1, B]; that of channels that are not three is the image itself."""
    if planes.shape[2] != 3:
        return planes
    red, green, blue = (weight * planes[:, :, i : i + 1] for i, weight in enumerate(GREY))
    return red + green + blue


def hue(planes: jax.Array, shift: Any) -> jax.Array:
    """Turns the hue by a part of a full turn, in the hexagonal colour space (HSV)."""
    if planes.shape[2] != 3:
        return planes
    red, green, blue = (planes[:, :, i] for i in range(3))
    most = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = most - jnp.minimum(jnp.minimum(red, green), blue)
    share = 1 / jnp.where(chroma > 0, chroma, 1)
    sector = jnp.where(
        most == red,
        (green - blue) * share,
        jnp.where(most == green, 2 + (blue - red) * share, 4 + (red - green) * share),
    )
    sector = sector + 6 * jnp.asarray(shift, planes.dtype)

    def channel(offset: int) -> jax.Array:
        place = offset + sector
        place = place - 6 * jnp.floor(place / 6)
        return most - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=2)


def gamma(planes: jax.Array, exponent: Any) -> jax.Array:
    """Raises to a power; 0 counts as 1e-8."""
    return jnp.clip(jnp.clip(planes, 1e-8, 1) ** exponent, 0, 1)


def _blend(planes: jax.Array, other: Any, factor: Any) -> jax.Array:
    return jnp.clip(factor * planes + (1 - factor) * other, 0, 1)


def _moved(planes: jax.Array, factors: Factors, padding: Padding) -> jax.Array:
    """Pads, transforms, and keeps the centre and, for a blur, what it reads around it."""
    height, width, channels, n = planes.shape
    margin = 0 if factors.sigma is None else RADIUS
    rows, columns = (_kept(side, margin) for side in (height, width))
    columns = jnp.where(factors.flip, columns[::-1], columns)
    places, weights = _table((height, width), rows, columns, factors, padding)
    pixels = planes.reshape(height * width, channels * n)
    read = jnp.zeros(())
    for place, weight in zip(places, weights, strict=True):
        read = read + weight[:, None] * pixels.at[place].get(mode="promise_in_bounds")
    return read.reshape(len(rows), len(columns), channels, n)


def _kept(side: int, margin: int) -> jax.Array:
    """Which of the padded pixels are kept: the centre and a margin, reflected at the border."""
    padded, first = side + 2 * (side // 2), side // 2
    return jnp.asarray(_reflected(np.arange(-margin, side + margin) + first, padded))


def _table(
    size: tuple[int, int], rows: jax.Array, columns: jax.Array, factors: Factors, padding: Padding
) -> tuple[list[jax.Array], list[jax.Array]]:
    """For each pixel that is kept, its four neighbours in the image and their weights, [P] each."""
    height, width = size
    turn = jnp.deg2rad(jnp.asarray(factors.angle, jnp.float32))
    cos, sin = jnp.cos(turn) / factors.scale, jnp.sin(turn) / factors.scale
    right, down = factors.translate
    middle = [(side + 2 * (side // 2) - 1) / 2 for side in size]
    y = rows[:, None] - middle[0] - down
    x = columns[None, :] - middle[1] - right
    ys = _neighbours(cos * y - sin * x + middle[0], height, padding)
    xs = _neighbours(cos * x + sin * y + middle[1], width, padding)
    corners = [
        ((row * width + column).reshape(-1), (share_y * share_x).reshape(-1))
        for row, share_y in ys
        for column, share_x in xs
    ]
    places, weights = ([corner[i] for corner in corners] for i in (0, 1))
    inside = jnp.sum(jnp.stack(weights), axis=0)
    # torchvision blends with black by what lies inside, once more.
    return places, [weight * inside for weight in weights]


def _neighbours(
    places: jax.Array, side: int, padding: Padding
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Both pixels of an axis around each place of the padded axis, and their shares."""
    pad = side // 2
    first = jnp.floor(places)
    share = places - first

    def pixel(i: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
        is_inside = (i >= 0) & (i <= side + 2 * pad - 1)
        i = i.astype(jnp.int32) - pad
        i = _reflected(i, side) if padding == "reflect" else i
        return jnp.clip(i, 0, side - 1), jnp.where(is_inside, share, 0)

    return pixel(first, 1 - share), pixel(first + 1, share)


def _reflected(i: Any, side: int) -> Any:
    """Indices within one reflection of an axis: c b | a b c d | c b."""
    return side - 1 - abs(side - 1 - abs(i))


def blur(planes: jax.Array, sigma: Any, radius: int) -> jax.Array:
    """A Gaussian blur of 2 radius + 1 pixels; sigma is [] or [B]. The margin is used up."""
    height, width = (side - 2 * radius for side in planes.shape[:2])
    distance = jnp.arange(-radius, radius + 1.0).reshape(-1, *[1] * jnp.ndim(sigma))
    weights = jnp.exp(-0.5 * jnp.square(distance / jnp.maximum(sigma, 1e-3)))
    weights = weights / jnp.sum(weights, axis=0)
    rows, read = jnp.zeros(()), jnp.zeros(())
    for i, weight in enumerate(weights):
        rows = rows + weight * planes[i : i + height]
    for i, weight in enumerate(weights):
        read = read + weight * rows[:, i : i + width]
    return read


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation that draws: `augmentation(key, images) -> images`.

    Ranges are (least, most) of uniform draws. Row i's noise does not depend on the batch's length.

    Attributes:
        brightness: see `Factors`, here and below.
        contrast: its range.
        saturation: its range.
        hue: its range.
        gamma: its range.
        angle: its range, degrees.
        scale: its range.
        sigma: its range; None for no blur.
        noise: standard deviation of the noise; 0 for none.
        padding: see `augment`.
    """

    brightness: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.7, 1.3)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.06, 0.06)
    gamma: tuple[float, float] = (0.7, 1.3)
    angle: tuple[float, float] = (-15.0, 15.0)
    scale: tuple[float, float] = (0.9, 1.1)
    sigma: tuple[float, float] | None = (0.001, 0.5)
    noise: float = 0.005
    padding: Padding = "edge"

    def __call__(self, key: Key, images: jax.Array) -> jax.Array:
        """Draws once for a batch [B, H, W, C] and augments it."""
        return augment(images, self.draw(key, images.shape), self.padding)

    def draw(self, key: Key, shape: tuple[int, ...]) -> Factors:
        """The random numbers for images of a shape [B, H, W, C].

        Shifts go up to a sixteenth of the padded size each way, rounded to whole pixels.
        """

        def uniform(name: str) -> jax.Array:
            least, most = getattr(self, name)
            return jax.random.uniform(fold(key, name), minval=least, maxval=most)

        names = ("brightness", "contrast", "saturation", "hue", "gamma", "angle", "scale")
        sides = jnp.array([side + 2 * (side // 2) for side in (shape[2], shape[1])])
        most = sides / 16
        shifts = jax.random.uniform(fold(key, "translate"), (2,), minval=-most, maxval=most)
        noise = jax.random.normal(fold(key, "noise"), shape) * self.noise if self.noise else None
        return Factors(
            **{name: uniform(name) for name in names},
            order=jax.random.permutation(fold(key, "order"), 5),
            translate=jnp.round(shifts),
            sigma=None if self.sigma is None else uniform("sigma"),
            flip=jax.random.bernoulli(fold(key, "flip")),
            noise=noise,
        )


DEFAULT = Augmentation()
SOFT = Augmentation(
    brightness=(0.8, 1.2),
    contrast=(0.85, 1.15),
    saturation=(0.75, 1.25),
    hue=(-0.03, 0.03),
    gamma=(0.85, 1.15),
    angle=(-8.0, 8.0),
    scale=(0.95, 1.05),
    sigma=(0.001, 0.25),
)
CLEAR = Augmentation(sigma=None, noise=0.0, padding="reflect")  # of ROID and CMF
