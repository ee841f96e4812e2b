"""TENT: entropy minimisation on normalisation layers (Wang et al. 2021, arXiv 2006.10726)."""

import dataclasses

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

    def step(self, network: Network) -> Step:
        """One step of entropy minimisation."""

        def objective(params, stats, shared, batch, key):
            del shared, key
            kept = masked.valid(batch)
            logits = network.logits(params, stats, batch["x"], kept=kept)
            return masked.mean(losses.entropy(logits), kept), (stats, {"logits": logits})

        return gradient_step(with_frozen(objective), self.transformation())
