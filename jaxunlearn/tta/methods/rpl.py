"""RPL: robust pseudo-labels by generalised cross-entropy (Rusak et al. 2022, arXiv 2104.12928)."""

import dataclasses

import jax

from jaxunlearn.core import checks
from jaxunlearn.tta import losses
from jaxunlearn.tta.methods.tent import Tent


@dataclasses.dataclass(frozen=True)
class RPL(Tent):
    """TENT's step with the network's own labels in place of the entropy.

    Attributes:
        q: between cross-entropy (near 0) and the mean absolute error (1).
    """

    q: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        checks.positive("q", self.q)

    def loss(self, logits: jax.Array) -> jax.Array:
        """The generalised cross-entropy, [B, K] -> [B]."""
        return losses.generalised_cross_entropy(logits, self.q)
