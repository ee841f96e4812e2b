"""LAME: Laplacian-adjusted maximum likelihood (Boudiaf et al. 2022, arXiv 2201.05718)."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks
from jaxunlearn.core.step import TrainState
from jaxunlearn.tta import masked
from jaxunlearn.tta.method import student
from jaxunlearn.tta.methods.statistics import Source
from jaxunlearn.tta.network import Network

_MOST_STEPS, _TOLERANCE = 100, 1e-8


@dataclasses.dataclass(frozen=True)
class LAME(Source):
    """The source network's answers, made alike where features are alike; nothing trains.

    The `logits` are the assignments, which are probabilities.

    Attributes:
        affinity: of features: "rbf", "knn" or "linear".
        knn: neighbours; of "rbf" that one sets the width, the sample itself is the first.
    """

    affinity: Literal["rbf", "knn", "linear"] = "rbf"
    knn: int = 5

    reads_features: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        checks.one_of("affinity", self.affinity, ("rbf", "knn", "linear"))
        checks.whole("knn", self.knn)

    def predict(
        self, network: Network, state: TrainState, shared: dict[str, Any], batch: dict[str, Any]
    ) -> jax.Array:
        """Assignments of a batch."""
        params, x = student(state, shared), batch["x"]
        logits, features = network.features(params, state.stats, x, statistics="running")
        valid = masked.everywhere(masked.valid(batch), len(x))
        norms = jnp.linalg.norm(features, axis=1, keepdims=True)
        similar = affinity(features / jnp.maximum(norms, 1e-12), valid, self.affinity, self.knn)
        unary = -jnp.log(jax.nn.softmax(logits) + 1e-10)
        return assignments(unary, similar, valid)


def affinity(features: jax.Array, valid: jax.Array, kind: str, knn: int) -> jax.Array:
    """How alike samples are, [B, B]; 0 from and to those that do not count.

    Args:
        features: of length 1, [B, D].
        valid: bool [B].
        kind: "rbf", "knn" or "linear".
        knn: number of neighbours.
    """
    both = valid[:, None] & valid
    if kind == "linear":
        return jnp.where(both, features @ features.T, 0)
    gaps = jnp.square(features[:, None] - features[None])  # fused with its sum: never in memory
    distances = jnp.where(both, jnp.sqrt(jnp.sum(gaps, axis=-1)), jnp.inf)
    n = len(features)
    if kind == "knn":
        _, nearest = jax.lax.top_k(-distances, min(knn + 1, n))
        chosen = jax.nn.one_hot(nearest[:, 1:], n).sum(1)
        return jnp.where(both, chosen, 0)
    near = jnp.sort(distances, axis=1)
    # Of fewer samples than neighbours, the last one.
    last = jnp.minimum(min(knn, n), jnp.maximum(valid.sum(), 1)) - 1
    width = masked.mean(jnp.take(near, last, axis=1), valid)
    scaled = jnp.square(distances) / jnp.maximum(2 * width**2, 1e-30)
    return jnp.where(both, jnp.exp(-scaled), 0)


def assignments(unary: jax.Array, similar: jax.Array, valid: jax.Array) -> jax.Array:
    """Y = softmax(-unary + W Y), iterated until the energy stands still: [B, K] (section 4).

    At least three iterations and at most 100; it stops at a relative change of 1e-8.
    """

    def energy(y: jax.Array, pairwise: jax.Array) -> jax.Array:
        terms = unary * y - pairwise * y + y * jnp.log(jnp.clip(y, 1e-20))
        return jnp.sum(jnp.where(valid[:, None], terms, 0))

    def unfinished(carry):
        i, _, before, now = carry
        still = jnp.abs(now - before) <= _TOLERANCE * jnp.abs(before)
        return (i < 3) | ((i < _MOST_STEPS) & ~still)

    def go_on(carry):
        i, y, _, before = carry
        pairwise = similar @ y
        y = jax.nn.softmax(pairwise - unary)
        return i + 1, y, before, energy(y, pairwise)

    start = (0, jax.nn.softmax(-unary), jnp.inf, jnp.inf)
    return jax.lax.while_loop(unfinished, go_on, start)[1]
