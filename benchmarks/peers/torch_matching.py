"""The matching fine-tune in PyTorch: one model after the other, its targets cached."""

import numpy as np
import torch

from jaxunlearn.unlearn.matching import DatamodelMatching


def match(net, x, targets, sample: np.ndarray, orders, settings: DatamodelMatching):
    """Fine-tunes one network.

    Args:
        net: the network; it ends in eval mode.
        x: inputs of the forget set and then the retain sample, [f + r, ...].
        targets: its own logits there minus the effect, [f + r, K].
        sample: positions in these, forget points as often as wanted, [s].
        orders: permutations of the sample, one per epoch, or None to draw them.
        settings: settings of DMM; loss "mse".
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings.decay)
    points = torch.as_tensor(sample)
    net.train()
    for epoch in range(settings.epochs):
        order = points[torch.randperm(len(points))] if orders is None else orders[epoch]
        for rows in order.split(settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(net(x[rows]), targets[rows]).backward()
            optimizer.step()
        decay.step()
    return net.eval()


def run(nets, x_all, effect, rows, sample, settings, threads: int, orders=None) -> torch.Tensor:
    """All networks: targets once in eval mode, the fine-tune, logits of all points."""
    torch.set_num_threads(threads)
    outputs = []
    x = x_all[rows]
    for number, net in enumerate(nets):
        with torch.no_grad():
            targets = net.eval()(x) - effect[rows]
        order = None if orders is None else orders[number]
        match(net, x, targets, sample, order, settings)
        with torch.no_grad():
            outputs.append(net(x_all))
    return torch.stack(outputs)
