"""RoTTA: robust test-time adaptation in dynamic scenarios (Yuan et al. 2023, arXiv 2303.13899)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, ema, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Mixture
from jaxunlearn.core.step import Step, TrainState, gradient_step, with_frozen
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import masked, memory, views
from jaxunlearn.tta._augment import DEFAULT
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.losses import soft_cross_entropy
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Network, norm_affine


@dataclasses.dataclass(frozen=True)
class RoTTA(Method):
    """Normalisation layers follow a teacher on a memory that is balanced over classes.

    Student and teacher each keep moving statistics of their own, which only the memory moves.
    Predictions are the teacher's with them, before the batch's images come, one by one.

    Attributes:
        memory_size: images of the memory.
        update_frequency: images between two updates, which may fall into the middle of a batch.
        nu: the student's share in an update of the teacher.
        alpha: share of the memory's statistics in the moving ones.
        lambda_t: weight of the age in what leaves the memory.
        lambda_u: weight of the uncertainty.
        augment: "default", that of `augment` with a draw for each update, or a function
            (key, images) -> images.
    """

    memory_size: int = 64
    update_frequency: int = 64
    nu: float = 0.001
    alpha: float = 0.05
    lambda_t: float = 1.0
    lambda_u: float = 1.0
    augment: Literal["default"] | views.Views = "default"

    def __post_init__(self):
        super().__post_init__()
        for name in ("memory_size", "update_frequency"):
            checks.whole(name, getattr(self, name))
        for name in ("nu", "alpha"):
            checks.share(name, getattr(self, name))
        for name in ("lambda_t", "lambda_u"):
            checks.at_least(name, getattr(self, name), 0)
        views.augmentation(self.augment, DEFAULT)

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers."""
        return norm_affine(params)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The teacher is a copy, with statistics of its own; the memory is empty."""
        state, shared = super().start(deployment, key)
        state = ema.start(state)
        own = {
            "teacher_stats": state.stats,
            "memory": memory.empty(self.memory_size),
            "images": jnp.zeros((self.memory_size, *deployment.image)),
            "came": jnp.zeros((), jnp.int32),
        }
        return dataclasses.replace(state, extra=state.extra | own), shared

    def step(self, network: Network) -> Step:
        """Images come into the memory one by one, and updates happen in between."""
        update = self.update(network)

        def step(state, shared, batch, key):
            logits = self.predict(network, state, shared, batch)
            p, log_k = jax.nn.softmax(logits), jnp.log(logits.shape[1])
            unsure = -jnp.sum(p * jnp.log(p + 1e-6), axis=1) / log_k
            images = jnp.concatenate([state.extra["images"], batch["x"]])
            numbers = self.memory_size + jnp.arange(len(logits))
            instances = memory.Instance(numbers, jnp.argmax(logits, axis=1), unsure)

            def come(state, instance_and_kept):
                instance, kept = instance_and_kept
                return jax.lax.cond(kept, take, lambda state, _: state, state, instance)

            def take(state, instance):
                held = memory.add(
                    state.extra["memory"], instance, logits.shape[1], self.lambda_t, self.lambda_u
                )
                came = state.extra["came"] + 1
                extra = state.extra | {"memory": held, "came": came}
                state = dataclasses.replace(state, extra=extra)
                of_update = {"images": images, "key": fold(key, "update", instance.image)}
                return jax.lax.cond(
                    came % self.update_frequency == 0,
                    lambda state: update(state, shared, of_update),
                    lambda state: state,
                    state,
                )

            kept = masked.everywhere(masked.valid(batch), len(logits))
            state, _ = jax.lax.scan(lambda s, i: (come(s, i), None), state, (instances, kept))
            return self.stored(state, images), {"logits": logits}

        return step

    def update(self, network: Network):
        """One update on the memory: `update(state, shared, {"images", "key"}) -> state`."""
        robust = {"statistics": Mixture(self.alpha, moving=True), "update": True}

        def objective(params, stats, shared, batch, key):
            del shared, key
            kept = batch["kept"]
            logits, stats = network.outputs(params, stats, batch["x"], kept=kept, **robust)
            loss = soft_cross_entropy(logits, batch["target"]) * batch["weight"]
            return masked.mean(loss, kept), (stats, {})

        follow = gradient_step(with_frozen(objective), self.transformation())
        follow = ema.with_ema(follow, 1 - self.nu)

        def update(state, shared, of_update):
            held, key = state.extra["memory"], of_update["key"]
            x = of_update["images"][held.image]
            teacher = tree.combine(state.extra["ema"], shared["frozen"])
            stats = state.extra["teacher_stats"]
            target, stats = network.outputs(teacher, stats, x, kept=held.filled, **robust)
            batch = {
                "x": views.augmentation(self.augment, DEFAULT)(key, x),
                "target": target,
                "kept": held.filled,
                "weight": jax.nn.sigmoid(-held.age / self.memory_size),
            }
            state, _ = follow(state, shared, batch, key)
            return dataclasses.replace(state, extra=state.extra | {"teacher_stats": stats})

        return update

    def stored(self, state: TrainState, images: jax.Array) -> TrainState:
        """The state whose slots number the images that it holds."""
        held = state.extra["memory"]
        own = {
            "images": images[held.image],
            "memory": held._replace(image=jnp.arange(self.memory_size)),
        }
        return dataclasses.replace(state, extra=state.extra | own)

    def predict(self, network, state, shared, batch) -> jax.Array:
        """The teacher's logits on its moving statistics."""
        params = tree.combine(state.extra["ema"], shared["frozen"])
        stats = state.extra["teacher_stats"]
        return network.logits(params, stats, batch["x"], statistics="running")
