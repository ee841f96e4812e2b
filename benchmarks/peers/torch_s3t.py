"""PyTorch's side of sliced training: one order, one stage, one step after the other."""

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the ViT; as `jaxunlearn.nn.images.vit.Config`."""

    patch: int
    n_layers: int
    n_heads: int
    eps: float


class Vit:
    """A ViT on frozen weights, with LoRA on queries and values of some layers.

    Weights have the layout of `nn.vit`, turned into tensors.
    """

    def __init__(self, sizes: Sizes, weights):
        self.sizes, self.weights = sizes, weights

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, H, W, C] to tokens [B, T, D]."""
        embed, p = self.weights["embed"], self.sizes.patch
        n, height, width, channels = x.shape
        x = x.reshape(n, height // p, p, width // p, p, channels).transpose(2, 3)
        x = x.reshape(n, -1, p * p * channels)
        tokens = functional.linear(x, embed["patch"]["kernel"].T, embed["patch"]["bias"])
        cls = embed["cls"].expand(n, 1, -1)
        return torch.cat([cls, tokens], 1) + embed["positions"]

    def layers(self, x: torch.Tensor, first: int, last: int, adapters, scale) -> torch.Tensor:
        """Layers `first` to `last`; `adapters` maps a layer to its four thin matrices."""
        n, t, d = x.shape
        heads = (n, t, self.sizes.n_heads, d // self.sizes.n_heads)
        for i in range(first, last):
            layer = {
                name: {k: v[i] for k, v in part.items()}
                for name, part in self.weights["layers"].items()
            }
            z = self.norm(x, layer["attention_norm"])
            q, k, v = (
                functional.linear(z, layer[name]["kernel"].T, layer[name]["bias"]) for name in "qkv"
            )
            if i in adapters:
                a_q, b_q, a_v, b_v = adapters[i]
                q = q + scale * ((z @ a_q) @ b_q)
                v = v + scale * ((z @ a_v) @ b_v)
            q, k, v = (part.reshape(heads).transpose(1, 2) for part in (q, k, v))
            heard = (
                functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
            )
            x = x + functional.linear(heard, layer["o"]["kernel"].T, layer["o"]["bias"])
            z = self.norm(x, layer["mlp_norm"])
            z = functional.gelu(functional.linear(z, layer["up"]["kernel"].T, layer["up"]["bias"]))
            x = x + functional.linear(z, layer["down"]["kernel"].T, layer["down"]["bias"])
        return x

    def norm(self, x: torch.Tensor, norm) -> torch.Tensor:
        """Over the width."""
        return functional.layer_norm(x, x.shape[-1:], norm["scale"], norm["bias"], self.sizes.eps)

    def logits(self, x: torch.Tensor, head) -> torch.Tensor:
        """Of the class token."""
        return self.norm(x[:, 0], self.weights["norm"]) @ head[0] + head[1]


def tensors(tree):
    """Arrays of a nested dict as tensors."""
    if isinstance(tree, dict):
        return {name: tensors(leaf) for name, leaf in tree.items()}
    return torch.tensor(np.array(tree))


def train_order(vit: Vit, x, y, stages, head, scale, rate, below=None):
    """One order: stages are `(first layer, fresh adapters by layer, batches [steps, B])`.

    With `below` ({first layer: residual streams of all examples}) what lies under a stage is read
    and not computed.

    Returns:
        The adapters by layer and the head after each stage.
    """
    done, heads = {}, []
    for first, fresh, table in stages:
        trainable = {i: [nn.Parameter(m.clone()) for m in four] for i, four in fresh.items()}
        top = [nn.Parameter(part.clone()) for part in head]
        trained = [m for four in trainable.values() for m in four] + top
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
        for step, rows in enumerate(table):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / len(table))
            if below is None:
                with torch.no_grad():
                    hidden = vit.layers(vit.embed(x[rows]), 0, first, {}, scale)
            else:
                hidden = below[first][rows]
            hidden = vit.layers(hidden, first, vit.sizes.n_layers, trainable | done, scale)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(vit.logits(hidden, top), y[rows]).backward()
            optimizer.step()
        done |= {i: [m.detach() for m in four] for i, four in trainable.items()}
        head = [part.detach() for part in top]
        heads.append(head)
    return done, heads
