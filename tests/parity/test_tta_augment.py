"""The augmentation of test images against PyTorch, with torchvision's documented arithmetic."""

import jax
import numpy as np
import pytest

from jaxunlearn import tta

torch = pytest.importorskip("torch", reason="needs the parity extra")
F = torch.nn.functional

RNG = np.random.default_rng(0)
SIDE = 8
IMAGES = RNG.uniform(-0.1, 1.1, (3, SIDE, SIDE, 3)).astype("float32")
IMAGES[0, :2] = 0.5  # grey: no hue
AUGMENT = jax.jit(tta.augment, static_argnames="padding")


def grey(x):
    return (x * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def hue(x, shift):
    """To hexagonal coordinates and back, sector by sector."""
    r, g, b = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    saturation = chroma / torch.where(chroma == 0, 1, value)
    divisor = torch.where(chroma == 0, 1, chroma)
    of = {name: (value - plane) / divisor for name, plane in zip("rgb", (r, g, b), strict=True)}
    turn = torch.where(
        value == r,
        of["b"] - of["g"],
        torch.where(value == g, 2 + of["r"] - of["b"], 4 + of["g"] - of["r"]),
    )
    turn = (torch.fmod(turn / 6 + 1, 1) + shift) % 1
    sector = torch.floor(turn * 6)
    rest = turn * 6 - sector
    p = value * (1 - saturation)
    q = value * (1 - saturation * rest)
    t = value * (1 - saturation * (1 - rest))
    table = [
        (value, t, p),
        (q, value, p),
        (p, value, t),
        (p, q, value),
        (t, p, value),
        (value, p, q),
    ]
    out = torch.zeros_like(x)
    for i, planes in enumerate(table):
        out = torch.where(((sector % 6) == i)[:, None], torch.stack(planes, 1), out)
    return out


def affine(x, angle, translate, scale):
    """By `grid_sample`; what lies outside is blended with black once more."""
    height, width = x.shape[2:]
    turn = np.deg2rad(angle)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    rows = torch.arange(height) - (height - 1) / 2 - translate[1]
    columns = torch.arange(width) - (width - 1) / 2 - translate[0]
    y, x_ = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([(cos * x_ + sin * y) * 2 / width, (cos * y - sin * x_) * 2 / height], -1)
    grid = grid.float().expand(len(x), -1, -1, -1)
    both = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    both = F.grid_sample(both, grid, align_corners=False)
    return both[:, :-1] * both[:, -1:]


def blur(x, sigma):
    weights = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, [2] * 4, mode="reflect"), kernel, groups=x.shape[1])


def reference(images, f, padding):
    x = torch.tensor(images).permute(0, 3, 1, 2).clamp(0, 1)
    operations = [
        lambda x: blend(x, 0, f["brightness"]),
        lambda x: blend(x, grey(x).mean((1, 2, 3), keepdim=True), f["contrast"]),
        lambda x: blend(x, grey(x), f["saturation"]),
        lambda x: hue(x, f["hue"]),
        lambda x: x.clamp(1e-8, 1) ** f["gamma"],
    ]
    for i in f["order"]:
        x = operations[i](x)
    x = F.pad(x, [SIDE // 2] * 4, mode={"edge": "replicate"}.get(padding, padding))
    x = affine(x, f["angle"], f["translate"], f["scale"])
    x = blur(x, f["sigma"])
    x = x[:, :, SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2]
    x = x.flip(-1) if f["flip"] else x
    return (x.permute(0, 2, 3, 1).numpy() + f["noise"]).clip(0, 1)


NEUTRAL = tta.Factors(sigma=1e-3, noise=np.zeros_like(IMAGES))._asdict()
CASES = [
    {"brightness": 1.3},
    {"contrast": 0.7},
    {"saturation": 1.5},
    {"hue": 0.4},
    {"gamma": 0.7, "order": (4, 0, 1, 2, 3)},  # first: it would magnify rounding near 0
    {"angle": 40.0, "scale": 0.6},  # reads beyond the padding
    {"translate": (3, -2)},
    {"sigma": 0.5},
    {"noise": RNG.normal(0, 0.1, IMAGES.shape).astype("float32")},
    {
        "brightness": 0.8,
        "contrast": 1.2,
        "saturation": 0.6,
        "hue": -0.06,
        "gamma": 1.3,
        "order": (3, 1, 4, 0, 2),
        "angle": -12.0,
        "translate": (-1, 1),
        "scale": 1.1,
        "sigma": 0.4,
        "flip": True,
    },
]


@pytest.mark.parametrize("padding", ["edge", "reflect"])
@pytest.mark.parametrize("given", CASES, ids=lambda case: "+".join(case)[:24])
def test_each_operation_and_all_of_them(given, padding):
    factors = NEUTRAL | given
    ours = AUGMENT(IMAGES, factors, padding=padding)
    np.testing.assert_allclose(ours, reference(IMAGES, factors, padding), atol=1e-5)
