"""No training: the source network, and normalisation with statistics of the stream.

- source: running statistics of the source.
- bn: those of the batch (BN-1; Nado et al. 2020, arXiv 2006.10963).
- bn_alpha: a mixture of both (Schneider et al. 2020, arXiv 2006.16971).
- bn_ema: running statistics that follow the stream.
"""

import dataclasses
from typing import Any

import jax

from jaxunlearn.core import checks
from jaxunlearn.core.model import Mixture
from jaxunlearn.core.model import Source as StatisticsSource
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import masked
from jaxunlearn.tta.method import Method, counted, student
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class Source(Method):
    """The network as it was trained, on its running statistics."""

    def trainable(self, params: Tree) -> Tree:
        """Nothing."""
        return jax.tree.map(lambda _: False, params)

    def normalisation(self) -> StatisticsSource:
        """What BatchNorm divides by."""
        return "running"

    def predict(
        self, network: Network, state: TrainState, shared: dict[str, Any], batch: dict[str, Any]
    ):
        """Logits of a batch."""
        how = {"statistics": self.normalisation(), "kept": masked.valid(batch)}
        return network.logits(student(state, shared), state.stats, batch["x"], **how)

    def step(self, network: Network) -> Step:
        """Predicts."""

        def step(state, shared, batch, key):
            del key
            logits = self.predict(network, state, shared, batch)
            return counted(state), {"logits": logits}

        return step


@dataclasses.dataclass(frozen=True)
class BN(Source):
    """Statistics of each batch in place of the source's."""

    def normalisation(self) -> StatisticsSource:
        """What BatchNorm divides by."""
        return "batch"


@dataclasses.dataclass(frozen=True)
class BNAlpha(Source):
    """alpha of the batch's statistics and 1 - alpha of the source's.

    Attributes:
        alpha: share of the batch, whose variance is the unbiased one, as in the published code.
    """

    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        checks.share("alpha", self.alpha)

    def normalisation(self) -> StatisticsSource:
        """What BatchNorm divides by."""
        return Mixture(float(self.alpha), unbiased=True)


@dataclasses.dataclass(frozen=True)
class BNEMA(Source):
    """Running statistics, to which each batch is added by the layer's momentum first."""

    def step(self, network: Network) -> Step:
        """Updates the statistics, then predicts with them."""

        def step(state, shared, batch, key):
            del key
            _, stats = network.outputs(
                student(state, shared),
                state.stats,
                batch["x"],
                update=True,
                kept=masked.valid(batch),
            )
            state = dataclasses.replace(counted(state), stats=stats)
            return state, {"logits": self.predict(network, state, shared, batch)}

        return step
