"""Training from scratch: the full models, the oracles and exact retraining."""

import dataclasses
import functools

from jaxunlearn.core import keys, optimizers
from jaxunlearn.core.model import Model
from jaxunlearn.core.step import supervised
from jaxunlearn.data import augment as augmentations
from jaxunlearn.data import batches
from jaxunlearn.unlearn._descent import DecayedDescent, descend
from jaxunlearn.unlearn._problem import Problem, Unlearned


@dataclasses.dataclass(frozen=True)
class Training(DecayedDescent):
    """SGD with momentum, coupled weight decay and a triangular learning rate.

    The shape of the recipe is that of Datamodel Matching (arXiv 2410.23232) and its ResNet-9; the
    constants are ours, for small networks.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step; incomplete batches are dropped.
        learning_rate: the peak, reached after a fifth of the steps.
        augment: any of "flip", "translate" (by up to 2 pixels) and "cutout" (a square of 4), drawn
            anew for every image and step; the order is always this one.
    """

    epochs: int = 20
    batch_size: int = 60
    learning_rate: float = 0.2
    augment: tuple[str, ...] = ()


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
