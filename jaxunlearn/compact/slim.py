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
        epochs: over the training images.
        batch_size: incomplete batches are dropped.
        learning_rate: at its peak, after a fifth of the steps.
        weight_decay: of AdamW.
        flip: mirror half of the images.
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
        recipe: how.
        images: the data.
        keys: of the models, [N].
        where: where.

    Returns:
        The models after the last epoch, whichever was best; checks `accuracy` and `loss` for each.
    """
    images.check()
    own_keys = jax.vmap(lambda key: fold(key, "init", "slim"))(keys)
    state = members.init(*jax.vmap(model.init)(own_keys))
    n_train = len(images.y) - images.n_val
    n_steps = recipe.epochs * (n_train // min(recipe.batch_size, n_train))
    stage = Stage(
        "slim",
        supervised(model),
        None,
        _adamw(recipe.learning_rate, recipe.weight_decay, n_steps),
        0,
        evaluate=fitting.accuracy_of(model),
    )
    return fitting.fit(
        stage, recipe.epochs, state, keys, images, recipe.batch_size, where, _batch(recipe)
    )


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
