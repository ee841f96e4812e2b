"""TRAK by `dattri`, on one checkpoint."""

from typing import Any
from unittest import mock

import numpy as np
import torch


def attributor(net: torch.nn.Module, dim: int, l2: float, projector: Any = None, batch: int = 64):
    """Scores of training points on targets: `(x, y, target_x, target_y) -> [n, m]`.

    Args:
        net: the trained network, in eval mode.
        dim: dimension of the projection.
        l2: added to the kernel's diagonal.
        projector: in place of its own random projection, `[B, P] -> [B, dim]`.
        batch: examples at once.
    """
    from dattri.algorithm import trak
    from dattri.task import AttributionTask

    def log_probability(params, pair):
        x, y = pair
        logits = torch.func.functional_call(net, params, (x.unsqueeze(0),))
        return -torch.nn.functional.cross_entropy(logits, y.unsqueeze(0))

    def margin(params, pair):
        logp = log_probability(params, pair)
        return logp - torch.log(1 - torch.exp(logp))

    def probability(params, pair):
        return torch.exp(log_probability(params, pair))

    task = AttributionTask(margin, net, [net.state_dict()])

    def score(x, y, target_x, target_y):
        peer = trak.TRAKAttributor(
            task,
            probability,
            projector_kwargs={"proj_dim": dim, "proj_type": "normal"},
            regularization=l2,
        )
        scale = peer.norm_scaler
        changes: dict[str, Any] = {"tqdm": lambda batches, **_: batches}
        if projector is not None:
            changes["random_project"] = lambda *_, **__: (
                lambda grads, ensemble_id: projector(grads * scale)
            )
        with mock.patch.multiple(trak, **changes):
            peer.cache(_loader(x, y, batch))
            return peer.attribute(_loader(target_x, target_y, batch)).detach().numpy()

    return score


def _loader(x: torch.Tensor, y: torch.Tensor, batch: int):
    dataset = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=False)


def order_of_parameters(build, params) -> np.ndarray:
    """Where each number of the flattened network lies among our flattened leaves.

    Args:
        build: `build(params) -> network` with our parameters.
        params: our tree.
    """
    import jax

    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    places = [
        np.arange(end - leaf.size, end, dtype=np.float32).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    net = build(jax.tree.unflatten(structure, places))
    return torch.cat([p.detach().flatten() for p in net.parameters()]).numpy().astype(int)
