"""What RMT and SANTA share: test images, their views and prototypes of the source contrasted."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Metrics, TrainState, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import deployment as deployments
from jaxunlearn.tta import losses, projector, prototypes, views
from jaxunlearn.tta._augment import DEFAULT
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.method import Method, descend
from jaxunlearn.tta.prototypes import Prototypes


@dataclasses.dataclass(frozen=True)
class Contrasting(Method):
    """A method with a projector, which trains at the network's side by an optimizer of its own.

    Attributes:
        lambda_trg: weight of the self-training on test images.
        lambda_cont: weight of the contrastive loss.
        temperature: of the contrastive loss.
        projection: "random", with 128 outputs; None for the features themselves; or arrays
            (w1 [D, P], b1 [P], w2 [P, P], b2 [P]).
        augment: "default", that of `augment` with a draw for each batch, or a function
            (key, images) -> images.
    """

    lambda_trg: float = 1.0
    lambda_cont: float = 1.0
    temperature: float = 0.1
    projection: Any = "random"
    augment: Literal["default"] | views.Views = "default"

    reads_features: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("lambda_trg", "lambda_cont"):
            checks.at_least(name, getattr(self, name), 0)
        checks.temperature("temperature", self.temperature)
        views.augmentation(self.augment, DEFAULT)
        object.__setattr__(self, "projection", projector.setting(self.projection))

    @property
    def needs_source(self) -> bool:
        """For the prototypes."""
        return True

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The source's prototypes, and the projector beside the network."""
        state, shared = super().start(deployment, key)
        n_features = deployments.n_features(deployment)
        heads = projector.start(self.projection, n_features, fold(key, "projector"))
        extra = {"projector": init_state(heads, self.transformation())}
        of_source = prototypes.of_source(deployment, fold(key, "prototypes"))
        shared["shared"] |= {"prototypes": of_source}
        return dataclasses.replace(state, extra=extra), shared

    def view(self, key: Key, images: jax.Array) -> jax.Array:
        """Augmented images."""
        return views.augmentation(self.augment, DEFAULT)(key, images)

    def contrast(
        self,
        heads: Tree,
        of_source: Prototypes,
        features: jax.Array,
        augmented: jax.Array,
        kept: jax.Array | None,
    ) -> jax.Array:
        """The contrastive loss of features [B, D], those of their views, and nearest prototypes."""
        nearest = of_source.nearest(jax.lax.stop_gradient(features))
        rows = jnp.stack([nearest, features, augmented], axis=1)
        return losses.contrastive(projector.project(heads, rows), self.temperature, kept)

    def follow(
        self, objective: Callable[[Tree, Tree], tuple[jax.Array, Metrics]], state: TrainState
    ) -> tuple[TrainState, Metrics]:
        """One step on `objective(params, heads) -> (loss, metrics)`, of network and projector."""
        rule, heads = self.transformation(), state.extra["projector"]
        grad = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (loss, metrics), (of_network, of_heads) = grad(state.params, heads.params)
        extra = state.extra | {"projector": descend(rule, of_heads, heads)}
        state = dataclasses.replace(descend(rule, of_network, state), extra=extra)
        return state, {"loss": loss, **metrics}
