"""Residual classifiers in PyTorch, whose tensors have the names of RobustBench and torchvision.

Each `forward` gives logits and the features before the last layer.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


def conv(n_in, n_out, size, stride=1, groups=1):
    return nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)


class Staged(nn.Module):
    """Stages of blocks under the names that files have; later stages start with a stride of 2."""

    def __init__(self, place, n_blocks, block, n_in, widths, expansion=1):
        super().__init__()
        self.places = [place.format(i) for i in range(1, len(widths) + 1)]
        for stage, (n, width) in enumerate(zip(n_blocks, widths, strict=True)):
            blocks = []
            for i in range(n):
                blocks.append(block(n_in, width, 2 if stage and i == 0 else 1))
                n_in = width * expansion
            name, _, inner = self.places[stage].partition(".")
            layer = nn.Sequential(*blocks)
            self.add_module(name, nn.ModuleDict({inner: layer}) if inner else layer)

    def through(self, x):
        for place in self.places:
            x = self.get_submodule(place)(x)
        return x


class PreActivation(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice."""

    def __init__(self, n_in, n_out, stride, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.bn1, self.conv1 = norm(n_in), conv(n_in, n_out, 3, stride)
        self.bn2, self.conv2 = norm(n_out), conv(n_out, n_out, 3)
        self.stride, self.n_new = stride, n_out - n_in

    def residual(self, y):
        return self.conv2(functional.relu(self.bn2(self.conv1(y))))


class WideBlock(PreActivation):
    def __init__(self, n_in, n_out, stride):
        super().__init__(n_in, n_out, stride)
        if n_in != n_out:
            self.convShortcut = conv(n_in, n_out, 1, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(x))
        return (self.convShortcut(y) if self.n_new else x) + self.residual(y)


class GroupNormBlock(PreActivation):
    def __init__(self, n_in, n_out, stride):
        super().__init__(n_in, n_out, stride, lambda n: nn.GroupNorm(8, n))

    def forward(self, x):
        shortcut = functional.avg_pool2d(x, self.stride)
        zeros = shortcut.new_zeros(len(x), self.n_new, *shortcut.shape[2:])
        return torch.cat([shortcut, zeros], 1) + self.residual(functional.relu(self.bn1(x)))


class WideResNet(Staged):
    """RobustBench's WideResNet."""

    def __init__(self, depth, width, n_classes=10):
        sizes = [16 * width, 32 * width, 64 * width]
        super().__init__("block{}.layer", [(depth - 4) // 6] * 3, WideBlock, 16, sizes)
        self.conv1 = conv(3, 16, 3)
        self.bn1, self.fc = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], n_classes)

    def forward(self, x):
        features = functional.relu(self.bn1(self.through(self.conv1(x)))).mean((2, 3))
        return self.fc(features), features


class ResNet26(Staged):
    """With GroupNorm, as test-time training has it; normalises images by .5 and .5."""

    def __init__(self, n_classes=10):
        super().__init__("layer{}", [4] * 3, GroupNormBlock, 16, [16, 32, 64])
        self.conv1 = conv(3, 16, 3)
        self.bn, self.fc = nn.GroupNorm(8, 64), nn.Linear(64, n_classes)

    def forward(self, x):
        x = self.through(self.conv1((x - 0.5) / 0.5))
        features = functional.relu(self.bn(x)).mean((2, 3))
        return self.fc(features), features


def downsample(n_in, n_out, stride):
    is_same = n_in == n_out and stride == 1
    layers = (conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))
    return None if is_same else nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """torchvision's, with the stride on the 3x3 convolution."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = downsample(n_in, 4 * width, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(Staged):
    """torchvision's, behind ImageNet's normalisation."""

    def __init__(self, n_classes=1000):
        super().__init__("layer{}", [3, 4, 6, 3], Bottleneck, 64, [64, 128, 256, 512], 4)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.fc = nn.Linear(2048, n_classes)

    def forward(self, x):
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        x = (x - mean[:, None, None]) / deviation[:, None, None]
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        features = self.through(x).mean((2, 3))
        return self.fc(features), features


class ResNeXtBlock(nn.Module):
    """Cardinality 4, base width 32."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        inner = 2 * width
        self.conv_reduce, self.bn_reduce = conv(n_in, inner, 1), nn.BatchNorm2d(inner)
        self.conv_conv, self.bn = conv(inner, inner, 3, stride, 4), nn.BatchNorm2d(inner)
        self.conv_expand, self.bn_expand = conv(inner, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = downsample(n_in, 4 * width, stride)

    def forward(self, x):
        y = functional.relu(self.bn_reduce(self.conv_reduce(x)))
        y = self.bn_expand(self.conv_expand(functional.relu(self.bn(self.conv_conv(y)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNeXt29(Staged):
    """RobustBench's Hendrycks2020AugMix_ResNeXt, which normalises images by .5 and .5."""

    def __init__(self, n_classes=10):
        super().__init__("stage_{}", [3] * 3, ResNeXtBlock, 64, [64, 128, 256], 4)
        self.conv_1_3x3, self.bn_1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        self.classifier = nn.Linear(1024, n_classes)

    def forward(self, x):
        x = functional.relu(self.bn_1(self.conv_1_3x3((x - 0.5) / 0.5)))
        features = self.through(x).mean((2, 3))
        return self.classifier(features), features


def drawn(net, seed=0):
    """The network with random weights, norms and statistics, away from their initial 0 and 1."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim > 1:
            tensor.normal_(0, (0.7 / tensor[0].numel()) ** 0.5, generator=draw)
        else:
            is_around_one = name.endswith("running_var") or (
                name.endswith("weight") and tensor.ndim == 1
            )
            tensor.uniform_(-0.2, 0.2, generator=draw).add_(float(is_around_one))
    return net
