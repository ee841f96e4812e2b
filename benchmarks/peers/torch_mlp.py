"""PyTorch peers of the MLP ensemble: one model after the other, and all stacked by `torch.func`."""

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from jaxunlearn.unlearn.scratch import Training


def network(params: dict | None = None) -> torch.nn.Sequential:
    """The MLP 64-64-10; with our parameters, if given."""
    hidden, head = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), head)
    if params is not None:
        with torch.no_grad():
            for layer, ours in zip((hidden, head), params["dense"].values(), strict=True):
                layer.weight.copy_(torch.tensor(np.asarray(ours["kernel"]).T))
                layer.bias.copy_(torch.tensor(np.asarray(ours["bias"])))
    return net


def rates(training: Training, n_steps: int) -> list[float]:
    """The triangular schedule as numbers."""
    turn = max(1, round(0.2 * n_steps))
    peak = training.learning_rate
    up = np.linspace(peak / (turn + 1), peak, turn + 1)
    down = peak * (1 - np.arange(1, n_steps - turn) / (n_steps - turn))
    return [float(rate) for rate in np.concatenate([up, down])]


def train_one(net, x, y, table, training: Training, **optimizer_settings) -> torch.nn.Sequential:
    """One model, indices of each step from `table` [n_steps, batch]."""
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        **optimizer_settings,
    )
    loss_fn = torch.nn.CrossEntropyLoss()
    for rate, row in zip(rates(training, len(table)), table, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss_fn(net(x[row]), y[row]).backward()
        optimizer.step()
    return net


def shuffled(n: int, training: Training) -> torch.Tensor:
    """An index table as PyTorch would draw it: [n_steps, batch]."""
    per_epoch = n // training.batch_size * training.batch_size
    rows = [torch.randperm(n)[:per_epoch] for _ in range(training.epochs)]
    return torch.cat(rows).reshape(-1, training.batch_size)


def train_loop(n_models: int, x, y, training: Training, threads: int, **settings) -> torch.Tensor:
    """All models, one after the other, freshly initialised; returns their logits on `x`."""
    torch.set_num_threads(threads)
    outputs = []
    for _ in range(n_models):
        net = train_one(network(), x, y, shuffled(len(x), training), training, **settings)
        with torch.no_grad():
            outputs.append(net(x))
    return torch.stack(outputs)


def train_stacked(n_models: int, x, y, training: Training, threads: int) -> torch.Tensor:
    """All models at once, freshly initialised; returns their logits on `x`."""
    torch.set_num_threads(threads)
    tables = torch.stack([shuffled(len(x), training) for _ in range(n_models)])
    return stacked([network() for _ in range(n_models)], x, y, tables, training)


def stacked(nets: list, x, y, tables: torch.Tensor, training: Training) -> torch.Tensor:
    """Trains given networks at once: stacked parameters, `vmap(grad)`, the update written out.

    Args:
        nets: the networks.
        x: inputs [n, 64].
        y: labels [n].
        tables: indices of each step, [n_models, n_steps, batch].
        training: the recipe.
    """
    base = nets[0]
    params = {
        name: torch.stack([dict(net.named_parameters())[name].detach() for net in nets])
        for name, _ in base.named_parameters()
    }
    momentum = {name: torch.zeros_like(p) for name, p in params.items()}

    def loss(weights, rows_x, rows_y):
        return torch.nn.functional.cross_entropy(functional_call(base, weights, (rows_x,)), rows_y)

    gradients = vmap(grad(loss))
    with torch.no_grad():
        for t, rate in enumerate(rates(training, tables.shape[1])):
            rows = tables[:, t]
            grads = gradients(params, x[rows], y[rows])
            for name, p in params.items():
                g = grads[name].add_(p, alpha=training.weight_decay)
                momentum[name].mul_(training.momentum).add_(g)
                p.sub_(momentum[name], alpha=rate)
        return vmap(lambda weights: functional_call(base, weights, (x,)))(params)
