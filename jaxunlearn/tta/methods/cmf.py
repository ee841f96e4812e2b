"""CMF: continual momentum filtering of the parameters (Lee & Chang 2024, ICLR)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks, tree
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import TrainState
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import filters
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.methods.roid import Weighted


@dataclasses.dataclass(frozen=True)
class CMF(Weighted):
    """ROID's loss; a hidden model between source and student moves as a Kalman filter's.

    Attributes:
        alpha: share of the hidden model that stays when it is pulled to the source.
        gamma: share of the student that stays when it is pulled to the hidden model.
        q: variance of a step, times trained parameters / 38,400.
    """

    alpha: float = 0.99
    gamma: float = 0.99
    q: float = 0.005

    def __post_init__(self):
        super().__post_init__()
        checks.share("alpha", self.alpha)
        checks.share("gamma", self.gamma)
        checks.at_least("q", self.q, 0)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The hidden model is the source's, of variance 0."""
        state, shared = super().start(deployment, key)
        # What does not train is the same in all models.
        extra = {"hidden": jax.tree.map(jnp.copy, state.params), "variance": jnp.zeros(())}
        return dataclasses.replace(state, extra=state.extra | extra), shared

    def restored(self, state: TrainState, initial: TrainState) -> TrainState:
        """A reset leaves the variance."""
        extra = initial.extra | {"variance": state.extra["variance"]}
        return dataclasses.replace(initial, extra=extra)

    def ensembled(self, state: TrainState, first: Tree) -> TrainState:
        """Predicts the hidden model, corrects it by the student, and pulls the student to it."""
        q = self.q * tree.size(state.params) / 38_400
        hidden = filters.towards(state.extra["hidden"], first, self.alpha)
        variance = self.alpha**2 * state.extra["variance"] + q
        beta = jnp.maximum((1 - q) / (variance + 1 - q), 0.89)
        beta = jnp.where(beta < 0.9999, beta, 1.0)
        hidden = filters.towards(hidden, state.params, beta)
        params = filters.towards(state.params, hidden, self.gamma)
        extra = state.extra | {"hidden": hidden, "variance": beta * variance}
        return dataclasses.replace(state, params=params, extra=extra)
