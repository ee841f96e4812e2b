"""Training from scratch: the full models, the oracles and exact retraining."""

import functools

import jax
import optax

from jaxunlearn.core import keys, loop, optimizers
from jaxunlearn.core.model import Model
from jaxunlearn.core.step import Objective, gradient_step, init_state, supervised
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import augment as augmentations
from jaxunlearn.data import batches
from jaxunlearn.unlearn._problem import Problem, Unlearned
from jaxunlearn.unlearn.method_settings import Training as Training

# As in the ResNet-9 recipe of the datamodels release.
_AUGMENTATIONS = {
    "flip": augmentations.flip,
    "translate": functools.partial(augmentations.translate, pixels=2),
    "cutout": functools.partial(augmentations.cutout, size=4),
}


def check_augment(names: tuple[str, ...]) -> None:
    """Raises a ValueError for a name that is no augmentation, or is given twice."""
    for name in names:
        if name not in _AUGMENTATIONS:
            raise ValueError(
                f"training.augment has {name!r}; known augmentations: {', '.join(_AUGMENTATIONS)}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"training.augment is {', '.join(names)}; each can be given once")


@functools.cache  # the same names are the same function, and so the same program
def _augmentation(names: tuple[str, ...]):
    """A transformation of batches, or None."""
    check_augment(names)
    if not names:
        return None
    change = augmentations.compose(*(f for name, f in _AUGMENTATIONS.items() if name in names))
    return lambda batch, key: batch | {"x": change(key, batch["x"])}


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
    augment=(),
    least=None,
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
        momentum: SGD momentum.
        weight_decay: coupled weight decay.
        augment: a static tuple of names.
        least: for a padded table of rows, see `data.batches`.
    """
    source = batches(
        problem.arrays, indices, batch_size, least=least, transform=_augmentation(augment)
    )
    n_steps = epochs * source.steps_per_epoch
    schedule = optimizers.triangular(learning_rate, n_steps)
    optimizer = optimizers.sgd(schedule, momentum, weight_decay)
    params, stats = model.init(keys.fold(key, "init"))
    key = keys.fold(key, "train")
    return descend(supervised(model), optimizer, params, stats, source, key, n_steps)


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
