"""SANTA: source anchoring and target alignment (Chakrabarty et al. 2023, TMLR)."""

import dataclasses
from typing import Any

from jaxunlearn.core import tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import masked
from jaxunlearn.tta.contrasting import Contrasting
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.losses import soft_cross_entropy
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class SANTA(Contrasting):
    """Scales and shifts of normalisation layers follow the source network, and contrast.

    The source network is the anchor: it has statistics of the batch too, and stays. Predictions are
    the student's before the update.
    """

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The anchor is the network as it was deployed."""
        state, shared = super().start(deployment, key)
        shared["shared"] |= {"anchor": state.params}
        return state, shared

    def step(self, network: Network) -> Step:
        """Anchoring and alignment."""

        def step(state, shared, batch, key):
            x, kept = batch["x"], masked.valid(batch)
            view = self.view(fold(key, "augment"), x)
            anchor = tree.combine(shared["shared"]["anchor"], shared["frozen"])
            target = network.logits(anchor, state.stats, x, kept=kept)

            def objective(params, heads):
                params = tree.combine(params, shared["frozen"])
                logits, features = network.features(params, state.stats, x, kept=kept)
                of_view, features_of_view = network.features(params, state.stats, view, kept=kept)
                # The student's probabilities weigh the anchor's logarithms.
                distances = 0.5 * soft_cross_entropy(target, logits)
                distances += 0.5 * soft_cross_entropy(target, of_view)
                loss = self.lambda_trg * masked.mean(distances, kept)
                loss += self.lambda_cont * self.contrast(
                    heads, shared["shared"]["prototypes"], features, features_of_view, kept
                )
                return loss, {"logits": logits}

            return self.follow(objective, state)

        return step
