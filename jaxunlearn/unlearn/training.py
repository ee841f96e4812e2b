"""Training from scratch: the full models, the oracles and exact retraining."""

import dataclasses

from jaxunlearn.core import keys, loop, optimizers
from jaxunlearn.core.model import Model
from jaxunlearn.core.step import gradient_step, init_state, supervised
from jaxunlearn.data import batches
from jaxunlearn.unlearn._problem import Problem, Unlearned


@dataclasses.dataclass(frozen=True)
class Training:
    """SGD with momentum, coupled weight decay and a triangular learning rate.

    The shape of the recipe is that of Datamodel Matching (arXiv 2410.23232) and its ResNet-9; the
    constants are ours, for small networks.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step; incomplete batches are dropped.
        learning_rate: the peak, reached after a fifth of the steps.
        momentum: of SGD.
        weight_decay: coupled, on all parameters.
    """

    epochs: int = 20
    batch_size: int = 60
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4


def train(
    model: Model,
    problem: Problem,
    indices,
    key,
    *,
    epochs,
    batch_size,
    learning_rate,
    momentum,
    weight_decay,
) -> Unlearned:
    """Trains one model from a fresh initialisation on some rows of the training set.

    Args:
        model: the network.
        problem: its `x` and `y` are read.
        indices: the rows to train on, int [r]; others are never gathered.
        key: decides initialisation and batch order.
        epochs: see `Training`, as all that follow.
        batch_size: a static integer.
        learning_rate: may be traced, as `momentum` and `weight_decay`.
        momentum: of SGD.
        weight_decay: coupled.
    """
    source = batches(problem.arrays, indices, batch_size)
    n_steps = epochs * source.steps_per_epoch
    schedule = optimizers.triangular(learning_rate, n_steps)
    optimizer = optimizers.sgd(schedule, momentum, weight_decay)
    params, stats = model.init(keys.fold(key, "init"))
    state, metrics = loop.scan(
        gradient_step(supervised(model), optimizer),
        init_state(params, optimizer, stats),
        None,
        source,
        keys.fold(key, "train"),
        n_steps,
    )
    return Unlearned(state.params, state.stats, metrics["loss"], n_steps * source.batch_size)
