"""ETA and EATA: entropy of sure and new samples (Niu et al. 2022, arXiv 2204.02610)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.core.tree import Tree, combine
from jaxunlearn.tta import filters, fisher, losses, masked
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.method import Method, counted, descend
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class ETA(Method):
    """Entropy of samples that are sure and unlike what the network has learned from so far.

    Attributes:
        margin_e0: a sample is sure if its entropy is below so many times ln K.
        d_margin: a sample is new if the cosine of its probabilities with their average over the
            samples learned from is below it.
    """

    margin_e0: float = 0.4
    d_margin: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        for name in ("margin_e0", "d_margin"):
            checks.at_least(name, getattr(self, name), 0)

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """No probabilities have been averaged yet."""
        state, shared = super().start(deployment, key)
        average = {"average": jnp.zeros(deployment.n_classes), "is_begun": jnp.zeros((), bool)}
        return dataclasses.replace(state, extra=average), shared

    def penalty(self, params: Tree, shared: dict[str, Any]) -> jax.Array:
        """What holds the trained parameters."""
        del params, shared
        return jnp.zeros(())

    def step(self, network: Network) -> Step:
        """One step; where nothing is kept, nothing moves."""
        rule = self.transformation()

        def loss_of(params, state, shared, batch):
            logits = network.logits(
                combine(params, shared["frozen"]), state.stats, batch["x"], kept=masked.valid(batch)
            )
            kept = self._kept(logits, state.extra, masked.valid(batch))
            entropy = losses.entropy(logits)
            most = filters.most_entropy(self.margin_e0, logits.shape[-1])
            weight = jnp.exp(most - jax.lax.stop_gradient(entropy))
            loss = masked.mean(weight * entropy, kept) + self.penalty(params, shared["shared"])
            return loss, (logits, kept)

        def step(state, shared, batch, key):
            del key
            grads, (logits, kept) = jax.grad(loss_of, has_aux=True)(
                state.params, state, shared, batch
            )
            is_any = kept.any()
            new = masked.where(is_any, descend(rule, grads, state), counted(state))
            now = masked.mean(jax.nn.softmax(logits), kept)
            average, is_begun = state.extra["average"], state.extra["is_begun"]
            after = jnp.where(is_begun, filters.moved(average, now, 0.9), now)
            extra = {
                "average": jnp.where(is_any, after, average),
                "is_begun": is_begun | is_any,
            }
            return dataclasses.replace(new, extra=extra), {"logits": logits}

        return step

    def _kept(self, logits: jax.Array, extra: Tree, valid: jax.Array | None) -> jax.Array:
        is_sure = masked.both(filters.sure(logits, self.margin_e0), valid)
        cosines = filters.cosine(extra["average"], jax.nn.softmax(logits))
        return is_sure & ((jnp.abs(cosines) < self.d_margin) | ~extra["is_begun"])


@dataclasses.dataclass(frozen=True)
class EATA(ETA):
    """ETA, held near the source where the Fisher information of the source is large.

    Attributes:
        fisher_alpha: weight of that penalty; 0 is ETA.
    """

    fisher_alpha: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        checks.at_least("fisher_alpha", self.fisher_alpha, 0)

    @property
    def needs_source(self) -> bool:
        """For the Fisher information, where it counts."""
        return self.fisher_alpha > 0

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The Fisher information of at most 2,000 images of the source."""
        state, shared = super().start(deployment, key)
        if not self.needs_source:
            return state, shared
        first = jax.tree.map(jnp.copy, state.params)
        information = fisher.of_source(deployment, state.params, shared["frozen"], key)
        return state, shared | {"shared": {"fisher": information, "first": first}}

    def penalty(self, params: Tree, shared: dict[str, Any]) -> jax.Array:
        """alpha sum F (theta - theta_0)^2."""
        if not self.needs_source:
            return super().penalty(params, shared)
        terms = jax.tree.map(
            lambda p, f, first: jnp.sum(f * jnp.square(p - first)),
            params,
            shared["fisher"],
            shared["first"],
        )
        return self.fisher_alpha * sum(jax.tree.leaves(terms), jnp.zeros(()))
