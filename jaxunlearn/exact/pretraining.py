"""A base for exact unlearning: a network trained on data that nobody can ask to delete.

The frozen base is outside of every guarantee. What it was trained on cannot be unlearned, so that
it has to be public, or at least none of the examples that a store will hold.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import Model, Stage, finite, stages
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.step import supervised
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import batches
from jaxunlearn.nn.images import vit

_SECONDS = 10  # between two states that are kept


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How the base is trained: AdamW, warm-up over a tenth of the steps, then a cosine to 0.

    Attributes:
        epochs: passes over the public examples.
        batch_size: examples per step.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05


def pretrain(
    config: vit.Config,
    x: np.ndarray,
    y: np.ndarray,
    settings: Pretraining,
    key: Key,
    *,
    augment: Callable[[Key, Any], Any] | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tree:
    """Trains a classifier of the public examples, and puts a fresh output layer on its layers.

    Args:
        config: of the network that the base is for; its `n_classes` need not be those of `y`.
        x: images [n, H, W, C], as the network will see them later.
        y: int labels [n], from 0.
        settings: see `Pretraining`.
        key: a typed key.
        augment: `(key, images) -> images` for every batch.
        folder: where the state is kept, to go on from after an interruption.
        progress: called with the steps taken and all steps.

    Returns:
        The base, on the host.

    Raises:
        ValueError: fewer examples than a batch.
        NonFiniteError: the weights are not finite in the end.
    """
    if len(x) < settings.batch_size or len(x) != len(y):
        raise ValueError(
            f"x has {len(x)} rows and y {len(y)}; as many, and at least batch_size = "
            f"{settings.batch_size}, are needed"
        )
    model = vit.build(dataclasses.replace(config, n_classes=int(y.max()) + 1))
    model = model._replace(apply=functools.partial(model.apply, unroll=config.n_layers))
    stage = _stage(model, x, y, settings, augment)
    state, _ = stages.run_stage(
        stage,
        stages.init(model.init(fold(key, "init"))[0]),
        fold(key, "pretraining"),
        report=progress,
        point=folder and ResumePoint(folder / "progress", seconds=_SECONDS),
    )
    advice = "; a lower learning_rate may help"
    finite.check_leaves("the weights of the base", state.params, advice)
    head = vit.build(config).init(fold(key, "head"))[0]["head"]
    return jax.device_get(state.params | {"head": head})


def _stage(
    model: Model, x: np.ndarray, y: np.ndarray, settings: Pretraining, augment: Any
) -> Stage:
    transform = None
    if augment is not None:
        transform = lambda batch, key: batch | {"x": augment(key, batch["x"])}  # noqa: E731
    arrays = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}
    source = batches(arrays, np.arange(len(x)), settings.batch_size, transform=transform)
    n_steps = settings.epochs * source.steps_per_epoch
    rate = optax.warmup_cosine_decay_schedule(0, settings.learning_rate, n_steps // 10, n_steps)
    optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
    block = source.steps_per_epoch
    return Stage("pretraining", supervised(model), source, optimizer, n_steps, block=block)
