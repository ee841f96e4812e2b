"""What sliced training needs of a network: layers that can be run in parts, outputs, losses."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn import vit


@dataclasses.dataclass(frozen=True)
class Network:
    """A stack of layers below an output layer; functions and sizes only.

    Attributes:
        model: takes the static arguments `start_at` and `stop_at`, see `nn.vit.vit`.
        n_layers: N.
        targets: the kernels that get adapters, among `layers/...`.
        trains_head: whether `head` trains in every stage (a new classifier), or stays the base's.
        losses: `losses(outputs, examples) -> (sums [B], counts [B])`; the loss of a batch is the
            sum of the sums over that of the counts.
    """

    model: Model
    n_layers: int
    targets: tree.Pattern
    trains_head: bool
    losses: Callable[[Any, Any], tuple[jax.Array, jax.Array]]

    def below(self, base: Tree, x: Any, stop_at: int) -> jax.Array:
        """The residual stream after the first layers, without adapters."""
        return self.model.apply(base, {}, x, stop_at=stop_at)[0]


@functools.cache  # the same network is the same program
def of_vit(config: vit.Config) -> Network:
    """A ViT that classifies: adapters on queries and values, a head that trains."""
    return Network(vit.vit(config), config.n_layers, vit.LORA_TARGETS, True, _cross_entropy)


def _cross_entropy(logits: jax.Array, examples: Any) -> tuple[jax.Array, jax.Array]:
    logp = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logp, examples["y"][:, None], axis=-1)[:, 0]
    return -own, jnp.ones_like(own)
