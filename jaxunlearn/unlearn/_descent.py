"""What the methods that follow a gradient have in common: their settings and their loop."""

import dataclasses

import jax
import optax

from jaxunlearn.core import loop
from jaxunlearn.core.step import Objective, gradient_step, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn._problem import Unlearned


@dataclasses.dataclass(frozen=True)
class Descent:
    """Epochs of SGD at a constant learning rate; a method gives the defaults.

    Attributes:
        epochs: passes over the data.
        batch_size: examples per step.
        learning_rate: learning rate.
        momentum: SGD momentum.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class DecayedDescent(Descent):
    """`Descent` with weight decay.

    Attributes:
        weight_decay: coupled weight decay, as PyTorch's SGD has it.
    """

    weight_decay: float = 5e-4


def descend(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Tree,
    stats: Tree,
    source,
    key: jax.Array,
    n_steps: int,
) -> Unlearned:
    """Follows an objective's gradient for some steps over a source of batches."""
    state, metrics = loop.scan(
        gradient_step(objective, optimizer),
        init_state(params, optimizer, stats),
        None,
        source,
        key,
        n_steps,
    )
    per_step = sum(s.batch_size for s in getattr(source, "sources", {"": source}).values())
    return Unlearned(state.params, state.stats, metrics["loss"], n_steps * per_step)
