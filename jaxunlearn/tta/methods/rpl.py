"""RPL: robust pseudo-labels by generalised cross-entropy (Rusak et al. 2022, arXiv 2104.12928)."""

import dataclasses

from jaxunlearn.core import checks
from jaxunlearn.core.step import Step, gradient_step, with_frozen
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import losses, masked
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class RPL(Method):
    """Normalisation layers learn the network's own labels.

    Attributes:
        q: between cross-entropy (near 0) and the mean absolute error (1).
    """

    q: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        checks.positive("q", self.q)

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def step(self, network: Network) -> Step:
        """One step with the labels of the same forward pass."""

        def objective(params, stats, shared, batch, key):
            del shared, key
            kept = masked.valid(batch)
            logits = network.logits(params, stats, batch["x"], kept=kept)
            loss = losses.generalised_cross_entropy(logits, self.q)
            return masked.mean(loss, kept), (stats, {"logits": logits})

        return gradient_step(with_frozen(objective), self.transformation())
