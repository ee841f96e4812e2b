"""What a test-time method is: a step over a stream, whose predictions are metrics.

    state, shared = method.start(deployment, key)
    step = method.step(network)      # step(state, shared, batch, key) -> (state, metrics)

`state` is a `TrainState` of the part that trains; `shared` has `frozen` (the other parameters) and
`shared` (what the method reads and does not change). A batch is a dict with `x`, images
[B, H, W, C] in [0, 1]; `valid`, bool [B], where not all of them count; and `source`, a batch of
the source (`x`, `y`, `valid`), for methods that replay it. `metrics["logits"]`, [B, K], are what
predictions are taken from.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import checks, tree
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import Step, TrainState, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import network as networks
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """What all methods have: an optimizer, a start, and a prediction without adaptation.

    Attributes:
        optimizer: "adam" (0.9, 0.999, 1e-8) or "sgd", with PyTorch's arithmetic.
        learning_rate: its learning rate.
        momentum: of "sgd".
        nesterov: whether that momentum is Nesterov's.
        weight_decay: coupled: added to the gradient.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0

    reads_features: ClassVar[bool] = False  # whether the network must give its features

    def __post_init__(self):
        checks.one_of("optimizer", self.optimizer, ("adam", "sgd"))
        for name in ("learning_rate", "weight_decay"):
            checks.at_least(name, getattr(self, name), 0)
        checks.at_least("momentum", self.momentum, 0, below=1)

    @property
    def needs_source(self) -> bool:
        """Whether a run must be given images of the source."""
        return False

    @property
    def replays(self) -> bool:
        """Whether each batch comes with one of the source."""
        return False

    def trainable(self, params: Tree) -> Tree:
        """Which parameters train, a tree of bools."""
        return networks.everything(params)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer."""
        return torch_optimizer(
            self.optimizer, self.learning_rate, self.momentum, self.nesterov, self.weight_decay
        )

    def start(self, deployment: Deployment, key: Key) -> tuple[TrainState, dict[str, Any]]:
        """The state before the first batch, and what the steps read; see this file's docstring."""
        del key
        params = deployment.params
        trained, frozen = tree.partition(params, self.trainable(params))
        state = init_state(trained, self.transformation(), deployment.stats)
        return state, {"frozen": frozen, "shared": {}}

    @abc.abstractmethod
    def step(self, network: Network) -> Step:
        """The step over batches."""

    def restored(self, state: TrainState, initial: TrainState) -> TrainState:
        """The state after a reset: that before the first batch of the stream."""
        del state
        return initial

    def predict(
        self, network: Network, state: TrainState, shared: dict[str, Any], batch: dict[str, Any]
    ) -> jax.Array:
        """Logits [B, K] of a batch without adaptation, for windows between two updates."""
        params = student(state, shared)
        return network.logits(params, state.stats, batch["x"], kept=batch.get("valid"))

    def warm_up_steps(self, batch_size: int) -> int:
        """How many batches of the source come before the first of the stream."""
        del batch_size
        return 0

    def warm_up(self, network: Network, n_steps: int) -> Step:
        """The step of that stage, of a method that has one."""
        raise ValueError(f"{type(self).__name__} has {n_steps} steps of a warm-up, but no warm_up")


def student(state: TrainState, shared: dict[str, Any]) -> Tree:
    """All parameters of the adapted network."""
    return tree.combine(state.params, shared["frozen"])


def torch_optimizer(
    name: str, learning_rate: Any, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Adam or SGD as PyTorch has them: weight decay is a part of the gradient."""
    if name == "adam":
        rule = optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)
    else:
        rule = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), rule) if weight_decay else rule


def descend(
    rule: optax.GradientTransformation, grads: Tree, state: TrainState, share: Any = 1.0
) -> TrainState:
    """One update of the parameters of a state, with a share of the learning rate."""
    updates, opt_state = rule.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: share * update, updates)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, opt_state=opt_state, step=state.step + 1)


def counted(state: TrainState) -> TrainState:
    """The state after a batch without an update."""
    return dataclasses.replace(state, step=state.step + jnp.ones((), jnp.int32))
