"""ROID: certainty and diversity weights, weights pulled to the source (Marsden et al. 2024).

arXiv 2306.00650, WACV 2024.
"""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.core.tree import Tree, combine
from jaxunlearn.tta import filters, losses, masked, views
from jaxunlearn.tta._augment import CLEAR
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.method import Method, descend
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class Weighted(Method):
    """What ROID and CMF share: the loss, the average of class probabilities, corrected answers.

    Attributes:
        momentum_probs: of the average of class probabilities.
        temperature: of the weights.
        augment: `(key, images) -> images` for the consistency loss; by default the augmentation of
            CoTTA with reflected borders, without blur and noise.
    """

    momentum_probs: float = 0.9
    temperature: float = 1 / 3
    augment: Literal["default"] | views.Views = "default"

    def __post_init__(self):
        super().__post_init__()
        checks.positive("temperature", self.temperature)
        checks.share("momentum_probs", self.momentum_probs)
        views.augmentation(self.augment, CLEAR)

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """All classes are as likely."""
        state, shared = super().start(deployment, key)
        n = deployment.n_classes
        own = {"first": jax.tree.map(jnp.copy, state.params)}
        extra = {"average": jnp.full(n, 1 / n)}
        return dataclasses.replace(state, extra=extra), shared | {"shared": own}

    def step(self, network: Network) -> Step:
        """One step on the samples that are diverse; the consistency loss sees them alone."""
        rule, augment = self.transformation(), views.augmentation(self.augment, CLEAR)

        def loss_of(params, state, shared, batch, key):
            full, valid, x = combine(params, shared["frozen"]), masked.valid(batch), batch["x"]
            logits = network.logits(full, state.stats, x, kept=valid)
            weights, kept = filters.certainty_and_diversity(
                jax.lax.stop_gradient(logits), state.extra["average"], self.temperature, valid
            )
            view = augment(fold(key, "view"), x)
            of_view = network.logits(full, state.stats, view, kept=kept)
            loss = losses.soft_likelihood_ratio(logits)
            loss = loss + losses.symmetric_cross_entropy(of_view, logits)
            # By the size of a full batch, however many are kept.
            return jnp.sum(jnp.where(kept, weights * loss, 0)) / len(x), logits

        def step(state, shared, batch, key):
            grads, logits = jax.grad(loss_of, has_aux=True)(state.params, state, shared, batch, key)
            valid = masked.valid(batch)
            now = masked.mean(jax.nn.softmax(logits), valid)
            average = filters.moved(state.extra["average"], now, self.momentum_probs)
            new = descend(rule, grads, state)
            new = dataclasses.replace(new, extra=state.extra | {"average": average})
            logits = filters.prior_corrected(logits, valid)
            return self.ensembled(new, shared["shared"]["first"]), {"logits": logits}

        return step

    @abc.abstractmethod
    def ensembled(self, state: TrainState, first: Tree) -> TrainState:
        """The state with its parameters averaged with others."""


@dataclasses.dataclass(frozen=True)
class ROID(Weighted):
    """Soft likelihood ratios and consistency, weighted; parameters are pulled to the source's.

    Attributes:
        momentum_src: share of the parameters that stays at each step.
    """

    momentum_src: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        checks.share("momentum_src", self.momentum_src)

    def ensembled(self, state: TrainState, first: Tree) -> TrainState:
        """A little of the source's parameters."""
        params = filters.towards(state.params, first, self.momentum_src)
        return dataclasses.replace(state, params=params)
