"""Networks with BatchNorm under the same budget of parameters, trained in a single stage."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxunlearn.compact import fitting
from jaxunlearn.compact.recipe import Warp
from jaxunlearn.core import members, optimizers
from jaxunlearn.core.checks import at_least, whole
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Model
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import supervised
from jaxunlearn.data import augment


@dataclasses.dataclass(frozen=True)
class SlimRecipe:
    """How a slim network is trained: AdamW, a rate that rises and falls linearly to 0.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; incomplete batches are dropped.
        learning_rate: peak learning rate, reached after a fifth of the steps.
        weight_decay: decoupled weight decay of AdamW.
        flip: whether half of the images are mirrored.
        warp: augmentation of every image.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 0.004
    weight_decay: float = 0.01
    flip: bool = False
    warp: Warp = Warp(rotation=0.03, zoom=0.1, translation=0.08)

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            whole(name, getattr(self, name))
        for name in ("learning_rate", "weight_decay"):
            at_least(name, getattr(self, name), 0)


def train(
    model: Model,
    recipe: SlimRecipe,
    images: fitting.Images,
    keys: Key,
    where: fitting.Placement = fitting.HERE,
) -> members.Fitted:
    """Trains models from scratch on the images behind the first `n_val`.

    Args:
        model: `nn.slim_cnn` or `nn.minimal_cnn`, not folded.
        recipe: settings of the training.
        images: the data.
        keys: key of each model, [N].
        where: see `fitting.Placement`.

    Returns:
        The models after the last epoch, whichever was best; checks `accuracy` and `loss` for each.
    """
    images.check()
    init_keys = jax.vmap(lambda key: fold(key, "init", "slim"))(keys)
    state = members.init(*jax.vmap(model.init)(init_keys))
    n_train, size = len(images.y) - images.n_val, recipe.batch_size
    n_steps = recipe.epochs * (n_train // min(size, n_train))
    adamw = _adamw(recipe.learning_rate, recipe.weight_decay, n_steps)
    evaluate = fitting.accuracy_of(model)
    stage = Stage("slim", supervised(model), None, adamw, 1, evaluate=evaluate)
    return fitting.fit(stage, recipe.epochs, state, keys, images, size, where, _batch(recipe))


@functools.cache
def _adamw(learning_rate: float, weight_decay: float, n_steps: int) -> Any:
    schedule = optimizers.triangular(learning_rate, n_steps)
    return optax.adamw(schedule, weight_decay=weight_decay)


@functools.cache
def _batch(recipe: SlimRecipe) -> Callable[[Any, Key], Any]:
    def transform(batch: Any, key: Key) -> Any:
        x = augment.as_float(batch["x"])
        x = augment.flip(fold(key, "flip"), x) if recipe.flip else x
        x = augment.warp(fold(key, "warp"), x, **dataclasses.asdict(recipe.warp))
        return batch | {"x": x}

    return transform
