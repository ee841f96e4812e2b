"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al. 2023, ICLR)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import Step, TrainState
from jaxunlearn.core.tree import combine
from jaxunlearn.tta import filters, losses, masked
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.early_norms import EarlyNorms, without_last_blocks
from jaxunlearn.tta.method import descend
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class SAR(EarlyNorms):
    """The entropy of sure samples at the sharpest near point, with recovery from collapse.

    It trains scales and shifts of norms before the last layers, see `EarlyNorms`.

    Attributes:
        margin_e0: a sample is sure if its entropy is below so many times ln K.
        rho: distance of the near point.
        reset_constant: the parameters are the source's again when the average of the loss falls
            below it; SGD's momentum is not.
    """

    optimizer: Literal["adam", "sgd"] = "sgd"
    nesterov: bool = False
    margin_e0: float = 0.4
    rho: float = 0.05
    reset_constant: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        for name in ("margin_e0", "rho", "reset_constant"):
            checks.at_least(name, getattr(self, name), 0)

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """No loss has been averaged yet."""
        state, shared = super().start(deployment, key)
        extra = {"loss": jnp.zeros(()), "is_begun": jnp.zeros((), bool)}
        first = jax.tree.map(jnp.copy, state.params)
        return dataclasses.replace(state, extra=extra), shared | {"shared": {"first": first}}

    def restored(self, state: TrainState, initial: TrainState) -> TrainState:
        """A reset leaves SGD's momentum."""
        return dataclasses.replace(initial, opt_state=state.opt_state)

    def step(self, network: Network) -> Step:
        """One step; where nothing is kept, momentum moves the parameters all the same."""
        rule = self.transformation()

        def loss_of(params, state, shared, batch, kept):
            full = combine(params, shared["frozen"])
            logits = network.logits(full, state.stats, batch["x"], kept=masked.valid(batch))
            kept = masked.both(filters.sure(logits, self.margin_e0), kept)
            return masked.mean(losses.entropy(logits), kept), (logits, kept)

        slope = jax.value_and_grad(loss_of, has_aux=True)

        def step(state, shared, batch, key):
            del key
            reads = (state, shared, batch)
            (_, (logits, sure)), grads = slope(state.params, *reads, masked.valid(batch))
            grads = without_last_blocks(grads)
            factor = self.rho / (optax.tree.norm(grads) + 1e-12)
            near = jax.tree.map(lambda p, g: p + factor * g, state.params, grads)
            (loss, (_, still_sure)), grads = slope(near, *reads, sure)
            new = descend(rule, grads, state)
            return self._recovered(new, shared, loss, still_sure.any()), {"logits": logits}

        return step

    def _recovered(
        self, state: TrainState, shared: dict[str, Any], loss: jax.Array, is_any: jax.Array
    ) -> TrainState:
        """The state with its average of the loss; the source's parameters where that is too low."""
        average, is_begun = state.extra["loss"], state.extra["is_begun"]
        moved = jnp.where(is_begun, filters.moved(average, loss, 0.9), loss)
        average, is_begun = jnp.where(is_any, moved, average), is_begun | is_any
        collapsed = is_begun & (average < self.reset_constant)
        params = masked.where(collapsed, shared["shared"]["first"], state.params)
        extra = {"loss": average, "is_begun": is_begun & ~collapsed}
        return dataclasses.replace(state, params=params, extra=extra)
