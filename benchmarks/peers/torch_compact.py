"""PyTorch's side of the lightweight CNN: both branches, the fused network, warps, Keras' Nadam."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Branch(nn.Module):
    """Convolution, pool, ReLU, twice; then linear. The pool comes first, as on our side."""

    def __init__(self, shape: tuple[int, int, int], n_classes: int = 10, filters: int = 10):
        super().__init__()
        height, width = (((side - 2) // 2 - 2) // 2 for side in shape[:2])
        self.conv_1 = nn.Conv2d(shape[2], filters, 3)
        self.conv_2 = nn.Conv2d(filters, 2 * filters, 3)
        self.head = nn.Linear(height * width * 2 * filters, n_classes)

    def forward(self, x):
        for layer in (self.conv_1, self.conv_2):
            x = torch.relu(functional.max_pool2d(layer(x), 2))
        return self.head(x.flatten(1))


class Dual(nn.Module):
    """Two branches, each with an input of its own."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.branch_1, self.branch_2 = Branch(shape), Branch(shape)

    def forward(self, x_1, x_2):
        return self.branch_1(x_1), self.branch_2(x_2)


class Fused(nn.Module):
    """Both branches on one input; a linear layer over a whole map is the head's convolution."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.branch_1, self.branch_2 = Branch(shape), Branch(shape)
        self.hidden, self.out = nn.Linear(20, 32), nn.Linear(32, 10)

    def forward(self, x):
        heads = torch.relu(torch.cat([self.branch_1(x), self.branch_2(x)], 1))
        x = functional.dropout(torch.relu(self.hidden(heads)), 0.5, self.training)
        return self.out(x)


def load(net: nn.Module, params: dict[str, Any]) -> nn.Module:
    """The network with our parameters."""
    net.load_state_dict(in_torch_layout(params))
    return net


def in_torch_layout(params: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Our parameters as a `state_dict`; a head's inputs are ordered by channel first."""
    tensors = {}
    for name, layer in params.items():
        if "kernel" not in layer:
            tensors |= in_torch_layout(layer, f"{prefix}{name}.")
            continue
        kernel = np.asarray(layer["kernel"])
        if name == "head":
            filters = np.shape(params["conv_2"]["bias"])[0]
            side = math.isqrt(kernel.size // filters // kernel.shape[-1])
            kernel = kernel.reshape(side, side, filters, -1).transpose(3, 2, 0, 1)
            kernel = kernel.reshape(len(kernel), -1)
        else:
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        tensors[f"{prefix}{name}.weight"] = torch.tensor(kernel.copy())
        tensors[f"{prefix}{name}.bias"] = torch.tensor(np.asarray(layer["bias"]))
    return tensors


def matrices(n: int, size: int) -> torch.Tensor:
    """Products of a random rotation, zoom and translation, [n, 2, 3], in pixels."""
    angle = (torch.rand(n) * 2 - 1) * 0.1 * 2 * math.pi
    zoom = 0.8 + 0.4 * torch.rand(2, n)
    shift = (torch.rand(2, n) * 2 - 1) * 0.2 * size
    cos, sin, centre = torch.cos(angle), torch.sin(angle), (size - 1) / 2
    linear = torch.stack([cos * zoom[0], -sin * zoom[1], sin * zoom[0], cos * zoom[1]], -1)
    linear = linear.reshape(n, 2, 2)
    offset = centre - linear @ (shift + centre).T[:, :, None]
    return torch.cat([linear, offset], 2)


def affine(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Reads [n, C, S, S] bilinearly, with reflection, at matrix @ (x, y, 1)."""
    size = x.shape[-1]
    # From pixels to coordinates in [-1, 1] of the edges: u = (2 x + 1) / S - 1.
    ones = torch.full((2, 1), (size - 1) / size)
    linear, offset = matrices[:, :, :2], matrices[:, :, 2:]
    offset = linear @ ones + 2 * offset / size - ones
    grid = functional.affine_grid(torch.cat([linear, offset], 2), list(x.shape), False)
    return functional.grid_sample(x, grid, "bilinear", "reflection", False)


def nadam(net: nn.Module) -> torch.optim.Optimizer:
    """Keras' Nadam: the momentum decays by 0.96 a step."""
    trained = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.NAdam(trained, 1e-3, eps=1e-7, momentum_decay=1.0, foreach=True)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Nesterov's momentum; the decay of 1e-4 is coupled here, which costs the same."""
    return torch.optim.SGD(
        net.parameters(), 1e-3, 0.9, nesterov=True, weight_decay=1e-4, fused=True
    )


def train_dual(net: Dual, x: torch.Tensor, y: torch.Tensor, table: np.ndarray, warp=None) -> Dual:
    """Stage A on uint8 [n, C, S, S]; `warp(rows) -> rows`, by default a random one."""
    optimizer, size = nadam(net.train()), x.shape[-1]
    warp = warp or (lambda rows: affine(rows, matrices(len(rows), size)))
    for row in torch.tensor(table):
        rows, labels = x[row].float() / 255, y[row]
        optimizer.zero_grad(set_to_none=True)
        first, second = net(rows, warp(rows))
        loss = functional.cross_entropy(first, labels) + functional.cross_entropy(second, labels)
        loss.backward()
        optimizer.step()
    return net


def train_fused(net: Fused, x: torch.Tensor, y: torch.Tensor, table: np.ndarray, of=sgd) -> Fused:
    """Training of the layers that are not frozen, by default by SGD as in the folds."""
    optimizer = of(net.train())
    for row in torch.tensor(table):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(x[row].float() / 255), y[row]).backward()
        optimizer.step()
    return net


def pipeline(x: torch.Tensor, y: torch.Tensor, tables: list[np.ndarray], n_folds: int) -> None:
    """Branches, fusion, the paper's five unfreezing stages, folds; an epoch is a table of rows.

    Args:
        x: uint8 [n, C, S, S].
        y: [n].
        tables: rows [steps, batch] of the branches' epochs, of each stage's, of a fold's.
        n_folds: trained one after the other from the same network.
    """
    shape = (x.shape[2], x.shape[3], x.shape[1])
    of_dual, of_stage, of_fold = tables
    dual, net = train_dual(Dual(shape), x, y, of_dual), Fused(shape)
    net.branch_1.load_state_dict(dual.branch_1.state_dict())
    net.branch_2.load_state_dict(dual.branch_2.state_dict())
    branches = (net.branch_1, net.branch_2)
    layers = [[net.out], [net.hidden]]
    layers += [[getattr(b, name) for b in branches] for name in ("head", "conv_2", "conv_1")]
    net.requires_grad_(False)
    for i, group in enumerate(layers):
        for layer in group:
            layer.requires_grad_(True)
        train_fused(net, x, y, of_stage, sgd if i == len(layers) - 1 else nadam)
    for _ in range(n_folds):
        train_fused(copy.deepcopy(net), x, y, of_fold)
