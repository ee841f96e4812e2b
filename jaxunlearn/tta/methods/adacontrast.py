"""AdaContrast: contrastive test-time adaptation (Chen et al. 2022, arXiv 2204.10377)."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, ema, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.tta import banks, contrast_views, masked, views
from jaxunlearn.tta.deployment import Deployment, n_features
from jaxunlearn.tta.method import Method, descend, student
from jaxunlearn.tta.network import Network

REFINED_AFTER = 1024  # images, after which neighbours decide on pseudo-labels


@dataclasses.dataclass(frozen=True)
class AdaContrast(Method):
    """All parameters follow pseudo-labels that neighbours refine, and a contrast of views.

    Predictions come from a second pass, after the update, on the running statistics that the passes
    over the batch's views moved.

    Attributes:
        alpha: weight of the cross-entropy of a strong view with the weak view's pseudo-label.
        beta: weight of the contrast of two strong views with the queue.
        eta: weight of the diversity of predictions.
        ema: share of the slow network, which makes keys and neighbours, in its update.
        temperature: of the contrast.
        queue_size: keys in the queue, and images among which neighbours are searched.
        augment: "default", that of `contrast_views`, or a function (key, images) -> (weak views,
            queries, keys), each [B, H, W, C].
    """

    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    alpha: float = 1.0
    beta: float = 1.0
    eta: float = 1.0
    ema: float = 0.999
    temperature: float = 0.07
    queue_size: int = 16_384
    augment: Literal["default"] | views.Views = "default"

    reads_features: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("alpha", "beta", "eta"):
            checks.at_least(name, getattr(self, name), 0)
        checks.share("ema", self.ema)
        checks.temperature("temperature", self.temperature)
        checks.whole("queue_size", self.queue_size)
        views.augmentation(self.augment, contrast_views.weak_and_strong)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The slow network is a copy; the queue is random, the bank empty."""
        state, shared = super().start(deployment, key)
        state = ema.start(state)
        size, sizes = self.queue_size, (n_features(deployment), deployment.n_classes)
        own = {
            "slow_stats": state.stats,
            "queue": banks.random_queue(fold(key, "queue"), size, *sizes),
            "bank": banks.empty_bank(size, deployment.batch_size, *sizes),
            "seen": jnp.zeros((), jnp.int32),
        }
        return dataclasses.replace(state, extra=state.extra | own), shared

    def step(self, network: Network) -> Step:
        """Pseudo-labels, both losses, the update, the bank, then the prediction."""
        augment = views.augmentation(self.augment, contrast_views.weak_and_strong)

        def step(state, shared, batch, key):
            kept = masked.everywhere(masked.valid(batch), len(batch["x"]))
            how = {"update": True, "kept": masked.valid(batch), "return_features": True}
            weak, query, positive = augment(fold(key, "augment"), batch["x"])
            old = state.extra

            outputs, stats = network.outputs(student(state, shared), state.stats, weak, **how)
            labels = refined(old["bank"], old["seen"], *outputs)
            slow = ema.average(old["ema"], state.params, self.ema)
            slow_params = tree.combine(slow, shared["frozen"])
            (_, keys), slow_stats = network.outputs(slow_params, old["slow_stats"], positive, **how)
            keys = banks.normalised(keys)
            queue = banks.enqueue(old["queue"], keys, labels, kept)

            def objective(params):
                params = tree.combine(params, shared["frozen"])
                (logits, features), new_stats = network.outputs(params, stats, query, **how)
                # As published, classes are those of the new queue and features of the old one.
                negatives = old["queue"]._replace(labels=queue.labels)
                contrast = self.contrast(features, keys, labels, negatives)
                loss = self.alpha * masked.mean(cross_entropy(logits, labels), kept)
                loss += self.beta * masked.mean(contrast, kept)
                return loss - self.eta * diversity(logits, kept), new_stats

            (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
            (logits, features), slow_stats = network.outputs(slow_params, slow_stats, weak, **how)
            p = jax.nn.softmax(logits)
            extra = {
                "ema": slow,
                "slow_stats": slow_stats,
                "queue": queue,
                "bank": banks.store(old["bank"], self.queue_size, features, p, kept),
                "seen": jnp.minimum(old["seen"] + jnp.sum(kept), REFINED_AFTER),
            }
            state = descend(self.transformation(), grads, state)
            state = dataclasses.replace(state, stats=stats, extra=extra)
            return state, {"loss": loss, "logits": self.predict(network, state, shared, batch)}

        return step

    def contrast(self, features, keys, labels, negatives: banks.Queue) -> jax.Array:
        """The contrast of queries with their keys and the queue's of other classes, [B]."""
        queries = banks.normalised(features)
        near = jnp.sum(queries * keys, axis=1, keepdims=True)
        far = queries @ negatives.features.T
        far = jnp.where(labels[:, None] != negatives.labels, far, -jnp.inf)
        logits = jnp.concatenate([near, far], axis=1) / self.temperature
        return cross_entropy(logits, jnp.zeros(len(logits), jnp.int32))

    def predict(self, network, state, shared, batch) -> jax.Array:
        """Logits on running statistics."""
        params = student(state, shared)
        return network.logits(params, state.stats, batch["x"], statistics="running")


def refined(bank: banks.Bank, seen: jax.Array, logits: jax.Array, features: jax.Array) -> jax.Array:
    """Pseudo-labels [B]: the network's own at first, then those of neighbours in the bank."""
    return jnp.argmax(
        jax.lax.cond(
            seen >= REFINED_AFTER,
            lambda: banks.of_neighbours(bank, features),
            lambda: jax.nn.softmax(logits),
        ),
        axis=1,
    )


def diversity(logits: jax.Array, kept: jax.Array) -> jax.Array:
    """The entropy of the mean prediction, []."""
    p = masked.mean(jax.nn.softmax(logits), kept)
    return -jnp.sum(p * jnp.log(p + 1e-8))
