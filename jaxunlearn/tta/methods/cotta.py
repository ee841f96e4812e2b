"""CoTTA: continual test-time adaptation (Wang et al. 2022, arXiv 2203.13591)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, ema, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import Step, TrainState, gradient_step, with_frozen
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import masked, views
from jaxunlearn.tta._augment import DEFAULT
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.losses import soft_cross_entropy, symmetric_cross_entropy
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class CoTTA(Method):
    """All parameters follow their average, the teacher, and are restored now and then.

    Where the source network is unsure of a batch, the teacher's logits are the mean over augmented
    views. Predictions are the teacher's, before the update. Statistics are those of each batch.

    Attributes:
        ema: the teacher's share in its update.
        restore: probability that a weight goes back to the source's after a step.
        threshold: mean confidence of the source network below which views are computed.
        symmetric: whether the cross-entropy is taken both ways, as published for ImageNet.
        n_augmentations: number of views.
        augment: "default", that of `augment` with a draw for each view, or a function
            (key, images) -> images.
    """

    ema: float = 0.999
    restore: float = 0.01
    threshold: float = 0.92
    symmetric: bool = False
    n_augmentations: int = 32
    augment: Literal["default"] | views.Views = "default"

    def __post_init__(self):
        super().__post_init__()
        checks.whole("n_augmentations", self.n_augmentations)
        for name in ("ema", "restore", "threshold"):
            checks.share(name, getattr(self, name))
        views.augmentation(self.augment, DEFAULT)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """Teacher and source network are copies."""
        state, shared = super().start(deployment, key)
        return ema.start(state), shared | {"shared": {"source": state.params}}

    def step(self, network: Network) -> Step:
        """Self-training, the teacher's update, then restoration."""
        distance = symmetric_cross_entropy if self.symmetric else soft_cross_entropy

        def objective(params, stats, shared, batch, key):
            del shared, key
            kept = masked.valid(batch)
            logits = network.logits(params, stats, batch["x"], kept=kept)
            loss = masked.mean(distance(logits, batch["target"]), kept)
            return loss, (stats, {"logits": batch["target"]})

        follow = gradient_step(with_frozen(objective), self.transformation())
        follow = ema.with_ema(follow, self.ema)

        def step(state, shared, batch, key):
            target = self.target(network, state, shared, batch, key)
            state, metrics = follow(state, shared, batch | {"target": target}, key)
            source = shared["shared"]["source"]
            params = restored(fold(key, "restore"), state.params, source, self.restore)
            return dataclasses.replace(state, params=params), metrics

        return step

    def target(self, network, state, shared, batch, key) -> jax.Array:
        """The teacher's logits [B, K], of the images or the mean of their views."""
        x, kept = batch["x"], masked.valid(batch)
        augment = views.augmentation(self.augment, DEFAULT)
        source = tree.combine(shared["shared"]["source"], shared["frozen"])
        sure = jax.nn.softmax(network.logits(source, state.stats, x, kept=kept)).max(axis=-1)

        def view(i):
            image = augment(fold(key, "view", i), x)
            return self.predict(network, state, shared, batch | {"x": image})

        def of_views():
            return jnp.mean(jax.lax.map(view, jnp.arange(self.n_augmentations)), axis=0)

        def of_images():
            return self.predict(network, state, shared, batch)

        return jax.lax.cond(masked.mean(sure, kept) < self.threshold, of_views, of_images)

    def predict(self, network, state, shared, batch) -> jax.Array:
        """The teacher's logits."""
        params = tree.combine(state.extra["ema"], shared["frozen"])
        return network.logits(params, state.stats, batch["x"], kept=masked.valid(batch))


def restored(key: Key, params: Tree, source: Tree, probability: float) -> Tree:
    """Parameters of which each entry is the source's with a probability, drawn apart."""
    if not probability:
        return params

    def leaf(path, now, then):
        purpose = fold(key, jax.tree_util.keystr(path))
        drawn = jax.random.bernoulli(purpose, float(probability), now.shape)
        return jnp.where(drawn, then, now)

    return jax.tree.map_with_path(leaf, params, source)
