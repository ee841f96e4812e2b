"""TENT, CoTTA and RMT in PyTorch, one step at a time, as they are published.

Every BatchNorm divides by the statistics of its batch. The augmentation is one draw per batch, each
operation on the whole tensor, as torchvision has them: blends, a sampling grid, a blur.
"""

import copy
import itertools
import math

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import torch_networks

GREY = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)


def by_batch(net):
    """The network with statistics of each batch, and none of its own."""
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
    return net.eval()


def features(net, x):
    """Logits and features of a `torch_networks.WideResNet`."""
    for layer in (net.stem, *net.blocks):
        x = layer(x)
    out = functional.relu(net.norm(x)).mean((2, 3))
    return net.head(out), out


def blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def turn_hue(x, shift):
    """Hue moved by a part of a turn, through HSV."""
    r, g, b = x.unbind(1)
    most, least = x.amax(1), x.amin(1)
    same = most == least
    chroma = most - least
    saturation = chroma / torch.where(same, torch.ones_like(most), most)
    safe = torch.where(same, torch.ones_like(chroma), chroma)
    rc, gc, bc = (most - r) / safe, (most - g) / safe, (most - b) / safe
    hue = (most == r) * (bc - gc)
    hue = hue + ((most == g) & (most != r)) * (2 + rc - bc)
    hue = hue + ((most != g) & (most != r)) * (4 + gc - rc)
    hue = (torch.fmod(hue / 6 + 1, 1) + shift) % 1
    sector = torch.floor(hue * 6)
    rest = hue * 6 - sector
    p = (most * (1 - saturation)).clamp(0, 1)
    q = (most * (1 - saturation * rest)).clamp(0, 1)
    t = (most * (1 - saturation * (1 - rest))).clamp(0, 1)
    sector = sector.long() % 6
    mask = functional.one_hot(sector, 6).permute(0, 3, 1, 2).to(x.dtype)
    table = torch.stack(
        [
            torch.stack((most, q, p, p, t, most), 1),
            torch.stack((t, most, most, q, p, p), 1),
            torch.stack((p, p, t, most, most, q), 1),
        ],
        1,
    )
    return (mask.unsqueeze(1) * table).sum(2)


def move(x, angle, translate, scale):
    """Turns, moves and scales about the centre, bilinearly, black outside."""
    n, _, height, width = x.shape
    turn = math.radians(angle)
    matrix = torch.tensor(
        [
            [math.cos(turn) / scale, math.sin(turn) / scale],
            [-math.sin(turn) / scale, math.cos(turn) / scale],
        ]
    )
    ys, xs = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    at = torch.stack((xs - translate[0], ys - translate[1]), -1) @ matrix.T
    grid = at / torch.tensor([width / 2, height / 2])
    return functional.grid_sample(
        x, grid.expand(n, -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def blur(x, sigma):
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2)
    taps = taps / taps.sum()
    kernel = (taps[:, None] * taps[None]).expand(x.shape[1], 1, 5, 5)
    padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(padded, kernel, groups=x.shape[1])


def augment(x, f):
    """The augmentation of RMT and CoTTA with given factors, a dict."""
    x = x.clamp(0, 1)
    for operation in f["order"]:
        if operation == 0:
            x = blend(x, torch.zeros_like(x), f["brightness"])
        elif operation == 1:
            mean = (x * GREY).sum(1, keepdim=True).mean((1, 2, 3), keepdim=True)
            x = blend(x, mean, f["contrast"])
        elif operation == 2:
            x = blend(x, (x * GREY).sum(1, keepdim=True), f["saturation"])
        elif operation == 3:
            x = turn_hue(x, f["hue"])
        else:
            x = (x.clamp(1e-8, 1) ** f["gamma"]).clamp(0, 1)
    side = x.shape[-1]
    x = functional.pad(x, (side // 2,) * 4, mode="replicate")
    x = blur(move(x, f["angle"], f["translate"], f["scale"]), f["sigma"])
    x = x[..., side // 2 : side // 2 + side, side // 2 : side // 2 + side]
    x = x.flip(-1) if f["flip"] else x
    return (x + f["noise"]).clamp(0, 1)


def drawn(x):
    """`augment` with the published ranges."""

    def uniform(low, high):
        return float(torch.empty(()).uniform_(low, high))

    most = 2 * x.shape[-1] / 16
    return augment(
        x,
        {
            "order": torch.randperm(5).tolist(),
            "brightness": uniform(0.6, 1.4),
            "contrast": uniform(0.7, 1.3),
            "saturation": uniform(0.5, 1.5),
            "hue": uniform(-0.06, 0.06),
            "gamma": uniform(0.7, 1.3),
            "angle": uniform(-15, 15),
            "translate": (round(uniform(-most, most)), round(uniform(-most, most))),
            "scale": uniform(0.9, 1.1),
            "sigma": uniform(0.001, 0.5),
            "flip": bool(torch.rand(()) < 0.5),
            "noise": 0.005 * torch.randn(x.shape),
        },
    )


def entropy_of(student, teacher):
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1)


def symmetric(student, teacher):
    return 0.5 * entropy_of(student, teacher) + 0.5 * entropy_of(teacher, student)


@torch.no_grad()
def average(teacher, student, decay):
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.mul_(decay).add_(new, alpha=1 - decay)


class Tent:
    """Entropy minimisation on BatchNorm's scales and shifts."""

    def __init__(self, net, lr=1e-3):
        self.net = by_batch(net)
        self.net.requires_grad_(False)
        norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        self.params = [p.requires_grad_(True) for m in norms for p in m.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr)

    def __call__(self, x):
        logits = self.net(x)
        self.optimizer.zero_grad()
        entropy_of(logits, logits).mean().backward()
        self.optimizer.step()
        return logits.detach()


class CoTTA:
    """A mean teacher on augmented views where the source is unsure, and stochastic restoration."""

    def __init__(
        self, net, augmentation=drawn, lr=1e-3, threshold=0.92, restore=0.01, views=32, both=False
    ):
        self.distance = symmetric if both else entropy_of
        self.net = by_batch(net)
        self.teacher, self.source = copy.deepcopy(net), copy.deepcopy(net)
        self.optimizer = torch.optim.Adam(net.parameters(), lr)
        self.augmentation, self.threshold = augmentation, threshold
        self.restore, self.views = restore, views

    def __call__(self, x):
        logits = self.net(x)
        with torch.no_grad():
            if self.source(x).softmax(1).amax(1).mean() < self.threshold:
                views = (self.teacher(self.augmentation(x)) for _ in range(self.views))
                target = torch.stack(list(views)).mean(0)
            else:
                target = self.teacher(x)
        self.optimizer.zero_grad()
        self.distance(logits, target).mean().backward()
        self.optimizer.step()
        average(self.teacher, self.net, 0.999)
        with torch.no_grad():
            pairs = zip(self.net.parameters(), self.source.parameters(), strict=True)
            for param, first in pairs if self.restore else ():
                mask = (torch.rand(param.shape) < self.restore).float()
                param.copy_(first * mask + param * (1 - mask))
        return target


class RMT:
    """Robust mean teacher after its warm-up: replay, prototypes, symmetric cross-entropy."""

    def __init__(self, net, prototypes, batches, projector=None, augmentation=drawn, lr=1e-3):
        self.net, self.teacher = by_batch(net), copy.deepcopy(net)
        width = prototypes.shape[1]
        self.projector = projector or torch.nn.Sequential(
            torch.nn.Linear(width, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128)
        )
        trained = itertools.chain(net.parameters(), self.projector.parameters())
        self.optimizer = torch.optim.Adam(trained, lr)
        self.prototypes, self.batches = prototypes, batches
        self.augmentation = augmentation

    def contrast(self, views, temperature=0.1):
        n, n_views, _ = views.shape
        rows = functional.normalize(self.projector(torch.cat(views.unbind(1))), dim=1)
        logits = rows @ rows.T / temperature
        logits = logits - logits.amax(1, keepdim=True).detach()
        others = 1 - torch.eye(n * n_views)
        positive = torch.eye(n).repeat(n_views, n_views) * others
        log_p = logits - torch.log((logits.exp() * others).sum(1, keepdim=True))
        return -((positive * log_p).sum(1) / positive.sum(1)).mean()

    def __call__(self, x):
        logits, own = features(self.net, x)
        of_view, view = features(self.net, self.augmentation(x))
        with torch.no_grad():
            target = self.teacher(x)
            cosines = functional.cosine_similarity(self.prototypes[:, None], own[None], dim=-1)
            nearest = cosines.argmax(0)
        views = torch.stack((self.prototypes[nearest], own, view), 1)
        loss = (0.5 * symmetric(logits, target) + 0.5 * symmetric(of_view, target)).mean()
        loss = loss + self.contrast(views)
        x_source, y_source = next(self.batches)
        loss = loss + functional.cross_entropy(self.net(x_source), y_source)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        average(self.teacher, self.net, 0.999)
        return (logits + target).detach()


def network(params, stats, depth=16, width=1):
    """A wide residual network with our weights."""
    return torch_networks.load(torch_networks.WideResNet(depth, width), params, stats)


def images(x):
    """[B, H, W, C] as PyTorch's, channels first."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))
