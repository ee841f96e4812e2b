"""PyTorch's side of the image benchmarks: training loops, augmentation and loading."""

import numpy as np
import torch
from torch.nn import functional

MEAN, STD = 0.5, 0.25


def setting(threads: int, channels_last: bool):
    """The memory format of a configuration; sets the number of threads."""
    torch.set_num_threads(threads)
    return torch.channels_last if channels_last else torch.contiguous_format


def images(x: np.ndarray, memory_format) -> torch.Tensor:
    """[n, H, W, C] as PyTorch holds it."""
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def train(net, x, y, table, memory_format, *, transform=None, settings) -> torch.nn.Module:
    """SGD on rows of `table` [n_steps, batch]; `settings` go to the optimizer."""
    net = net.to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(net.parameters(), fused=True, **settings)
    for row in table:
        rows = x[row].contiguous(memory_format=memory_format)
        rows = rows if transform is None else transform(rows)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(rows), y[row]).backward()
        optimizer.step()
    return net


def augment(rows: torch.Tensor) -> torch.Tensor:
    """Flip, translate by up to 2 pixels, cutout of 4, then normalise; uint8 [B, C, H, W]."""
    n, _, height, width = rows.shape
    flipped = torch.rand(n, 1, 1, 1) < 0.5
    rows = torch.where(flipped, rows.flip(3), rows)
    padded = functional.pad(rows, (2, 2, 2, 2))
    down, right = torch.randint(0, 5, (2, n, 1))
    row = (down + torch.arange(height))[:, None, :, None]
    column = (right + torch.arange(width))[:, None, None, :]
    rows = padded[torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None], row, column]
    top = torch.randint(0, height, (n, 1)) - 2
    left = torch.randint(0, width, (n, 1)) - 2
    hole = ((torch.arange(height) >= top) & (torch.arange(height) < top + 4))[:, None, :, None]
    hole = hole & ((torch.arange(width) >= left) & (torch.arange(width) < left + 4))[:, None, None]
    return normalise(rows.masked_fill(hole, 0))


def normalise(rows: torch.Tensor) -> torch.Tensor:
    """uint8 to normalised floats."""
    return (rows.float() / 255 - MEAN) / STD


def read(x: torch.Tensor, y: torch.Tensor, batch: int, workers: int) -> float:
    """One shuffled epoch through a `DataLoader`, normalised; returns the sum of all pixels."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch, shuffle=True, num_workers=workers
    )
    return sum(float(normalise(rows).sum()) for rows, _ in loader)


def read_whole(x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    """The same by indexing a tensor, without a `DataLoader`: the leanest loop."""
    order = torch.randperm(len(x)).reshape(-1, batch)
    return sum(float(normalise(x[row]).sum()) + 0 * int(y[row][0]) for row in order)
