"""TENT: entropy minimisation on normalisation layers (Wang et al. 2021, arXiv 2006.10726)."""

import dataclasses

import jax

from jaxunlearn.core.step import Step, gradient_step, with_frozen
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import losses, masked
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class Tent(Method):
    """Scales and shifts of normalisation layers follow the gradient of the mean entropy.

    The prediction is that of the same forward pass, before the update.
    """

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def loss(self, logits: jax.Array) -> jax.Array:
        """The entropy, [B, K] -> [B]."""
        return losses.entropy(logits)

    def step(self, network: Network) -> Step:
        """One step on the mean loss of the batch."""

        def objective(params, stats, shared, batch, key):
            del shared, key
            kept = masked.valid(batch)
            logits = network.logits(params, stats, batch["x"], kept=kept)
            return masked.mean(self.loss(logits), kept), (stats, {"logits": logits})

        return gradient_step(with_frozen(objective), self.transformation())
