"""RMT: a robust mean teacher (Doebler et al. 2023, arXiv 2211.13081)."""

import dataclasses
from typing import Any

import jax

from jaxunlearn.core import checks, ema, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.tta import masked
from jaxunlearn.tta.contrasting import Contrasting
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.losses import symmetric_cross_entropy
from jaxunlearn.tta.method import descend, student
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class RMT(Contrasting):
    """All parameters follow their average, the teacher, by the symmetric cross-entropy.

    Predictions are the sums of the logits of student and teacher before the update. Statistics are
    those of each batch, in both.

    Attributes:
        lambda_src: weight of the cross-entropy on labelled images of the source; 0 replays none.
        ema: the teacher's share in its update.
        warm_up_samples: images of the source on which student and teacher start; 0 for none.
        alpha: share of the second term in the symmetric cross-entropy; 0 is the cross-entropy.
    """

    lambda_src: float = 1.0
    ema: float = 0.999
    warm_up_samples: int = 50_000
    alpha: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        checks.at_least("lambda_src", self.lambda_src, 0)
        for name in ("ema", "alpha"):
            if not 0 <= checks.at_least(name, getattr(self, name), 0) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to 1 are allowed")
        checks.whole("warm_up_samples", self.warm_up_samples, 0)
        checks.share("ema", self.ema)
        checks.share("alpha", self.alpha)

    @property
    def replays(self) -> bool:
        """Whether each batch comes with one of the source."""
        return self.lambda_src > 0

    def warm_up_steps(self, batch_size: int) -> int:
        """Whole batches in `warm_up_samples`."""
        return self.warm_up_samples // batch_size

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The teacher is a copy of the network."""
        state, shared = super().start(deployment, key)
        return ema.start(state), shared

    def warm_up(self, network: Network, n_steps: int) -> Step:
        """Student and teacher on images of the source; the learning rate rises linearly.

        The optimizer's moments are kept for the stream; the projector takes no part.
        """

        def step(state, shared, batch, key):
            del key
            x, kept = batch["source"]["x"], masked.valid(batch["source"])
            target = self.teacher(network, state, shared, x, kept)

            def objective(params):
                params = tree.combine(params, shared["frozen"])
                logits = network.logits(params, state.stats, x, kept=kept)
                return masked.mean(symmetric_cross_entropy(logits, target, self.alpha), kept)

            loss, grads = jax.value_and_grad(objective)(state.params)
            share = (state.step + 1) / n_steps
            return descend(self.transformation(), grads, state, share), {"loss": loss}

        return ema.with_ema(step, self.ema)

    def step(self, network: Network) -> Step:
        """Self-training, contrast, and replay of the source."""

        def step(state, shared, batch, key):
            x, kept = batch["x"], masked.valid(batch)
            view = self.view(fold(key, "augment"), x)
            target = self.teacher(network, state, shared, x, kept)

            def objective(params, heads):
                params = tree.combine(params, shared["frozen"])
                logits, features = network.features(params, state.stats, x, kept=kept)
                of_view, features_of_view = network.features(params, state.stats, view, kept=kept)
                distances = 0.5 * symmetric_cross_entropy(logits, target, self.alpha)
                distances += 0.5 * symmetric_cross_entropy(of_view, target, self.alpha)
                loss = self.lambda_trg * masked.mean(distances, kept)
                loss += self.lambda_cont * self.contrast(
                    heads, shared["shared"]["prototypes"], features, features_of_view, kept
                )
                if self.replays:
                    loss += self.lambda_src * self.supervised(network, params, state, batch)
                return loss, {"logits": logits + target}

            return self.follow(objective, state)

        return ema.with_ema(step, self.ema)

    def supervised(self, network, params, state, batch) -> jax.Array:
        """The cross-entropy on a batch of the source, with statistics of its own."""
        source = batch["source"]
        kept = masked.valid(source)
        logits = network.logits(params, state.stats, source["x"], kept=kept)
        return masked.mean(cross_entropy(logits, source["y"]), kept)

    def teacher(self, network, state, shared, x, kept) -> jax.Array:
        """The teacher's logits."""
        params = tree.combine(state.extra["ema"], shared["frozen"])
        return network.logits(params, state.stats, x, kept=kept)

    def predict(self, network, state, shared, batch) -> jax.Array:
        """The sum of the logits of student and teacher."""
        x, kept = batch["x"], masked.valid(batch)
        logits = network.logits(student(state, shared), state.stats, x, kept=kept)
        return logits + self.teacher(network, state, shared, x, kept)
