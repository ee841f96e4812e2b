"""The image networks in PyTorch, and our parameters in PyTorch's layout."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxunlearn.core import tree


def conv(n_in, n_out, size, stride=1, padding=None):
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(n_in, n_out, size, stride, padding, bias=False)


class ConvNorm(nn.Module):
    def __init__(self, n_in, n_out, size=3, **shape):
        super().__init__()
        self.conv, self.norm = conv(n_in, n_out, size, **shape), nn.BatchNorm2d(n_out)

    def forward(self, x):
        return functional.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.first, self.second = ConvNorm(n, n), ConvNorm(n, n)

    def forward(self, x):
        return x + self.second(self.first(x))


class ResNet9(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = ConvNorm(3, 64), ConvNorm(64, 128, 5, stride=2, padding=2)
        self.residual1, self.residual2 = Residual(128), Residual(256)
        self.widen, self.narrow = ConvNorm(128, 256), ConvNorm(256, 128, padding=0)
        self.head = nn.Linear(128, 10, bias=False)

    def forward(self, x):
        x = self.residual1(self.down(self.stem(x)))
        x = self.residual2(functional.max_pool2d(self.widen(x), 2))
        return 0.2 * self.head(functional.adaptive_max_pool2d(self.narrow(x), 1).flatten(1))


class CNN(nn.Module):
    """Our `nn.cnn` with BatchNorm, for images of 3 channels."""

    def __init__(self, channels, n_features):
        super().__init__()
        pairs = list(zip((3, *channels[:-1]), channels, strict=True))
        self.conv = nn.ModuleList(conv(a, b, 3) for a, b in pairs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(b) for b in channels)
        self.head = nn.Linear(n_features, 10)

    def forward(self, x):
        for convolve, norm in zip(self.conv, self.norm, strict=True):
            x = functional.max_pool2d(functional.relu(norm(convolve(x))), 2)
        return self.head(x.permute(0, 2, 3, 1).flatten(1))  # our order of features


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.conv1, self.conv2 = conv(n_in, n_out, 3, stride), conv(n_out, n_out, 3)
        self.shortcut = conv(n_in, n_out, 1, stride) if n_in != n_out else None

    def forward(self, x):
        y = functional.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(functional.relu(self.norm2(self.conv1(y))))


class WideResNet(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        n = (depth - 4) // 6
        sizes = [16] + [16 * width] * n + [32 * width] * n + [64 * width] * n
        self.stem = conv(3, 16, 3)
        self.blocks = nn.ModuleList(
            Block(a, b, 2 if i in (n, 2 * n) else 1)
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.norm, self.head = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], 10)

    def forward(self, x):
        for layer in (self.stem, *self.blocks):
            x = layer(x)
        return self.head(functional.relu(self.norm(x)).mean((2, 3)))


def in_torch_layout(params, stats):
    """Our trees as `{torch's name: array}`, parameters and statistics together."""
    theirs = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    named = {}
    for path, leaf in (*tree.named(params).items(), *tree.named(stats).items()):
        *above, last = path.split("/")
        # Our list indices are zero-padded.
        prefix = [str(int(part)) if part.isdigit() else part for part in above]
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        named[".".join([*prefix, theirs.get(last, last)])] = np.asarray(leaf).transpose(order)
    return named


def load(net, params, stats):
    """Copies all of our parameters and statistics; every name must be found."""
    ours = {name: torch.tensor(a.copy()) for name, a in in_torch_layout(params, stats).items()}
    counters = {n: v for n, v in net.state_dict().items() if n.endswith("num_batches_tracked")}
    net.load_state_dict(ours | counters, strict=True)
    return net
