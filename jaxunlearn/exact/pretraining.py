"""A base for exact unlearning: a network trained on data that nobody can ask to delete.

The frozen base is outside of every guarantee. What it was trained on cannot be unlearned, so that
it has to be public, or at least none of the examples that a store will hold.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import checkpoint, loop
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.step import gradient_step, init_state, supervised
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import batches
from jaxunlearn.nn.images import vit

_SECONDS = 10  # between two states that are kept


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How the base is trained: AdamW, warm-up over a tenth of the steps, then a cosine to 0.

    Attributes:
        epochs: over the public examples.
        batch_size: of a step.
        learning_rate: the highest.
        weight_decay: decoupled.
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
        ArithmeticError: the weights are not finite in the end.
    """
    if len(x) < settings.batch_size or len(x) != len(y):
        raise ValueError(
            f"x has {len(x)} rows and y {len(y)}; as many, and at least batch_size = "
            f"{settings.batch_size}, are needed"
        )
    model = vit.build(dataclasses.replace(config, n_classes=int(y.max()) + 1))
    model = model._replace(apply=functools.partial(model.apply, unroll=config.n_layers))
    transform = None
    if augment is not None:
        transform = lambda batch, key: batch | {"x": augment(key, batch["x"])}  # noqa: E731
    arrays = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}
    source = batches(arrays, np.arange(len(x)), settings.batch_size, transform=transform)
    n_steps = settings.epochs * source.steps_per_epoch
    rate = optax.warmup_cosine_decay_schedule(0, settings.learning_rate, n_steps // 10, n_steps)
    optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
    state = init_state(model.init(fold(key, "init"))[0], optimizer)
    kept = None if folder is None else folder / "progress"
    resume = None
    if kept is not None and kept.exists():
        resume = checkpoint.restore(kept, loop.start(state, ()))
    saved = time.monotonic()

    def after_epoch(now: loop.Progress, *_: Any) -> None:
        nonlocal saved
        done = int(now.done)
        if progress is not None:
            progress(done, n_steps)
        if kept is not None and done < n_steps and time.monotonic() > saved + _SECONDS:
            kept.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save(kept, now)
            saved = time.monotonic()

    found = loop.run(
        gradient_step(supervised(model), optimizer),
        state,
        None,
        source,
        fold(key, "pretraining"),
        n_steps,
        block=source.steps_per_epoch,
        callback=after_epoch,
        resume=resume,
    )
    params = found.state.params
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise ArithmeticError("the weights of the base are not finite; take a lower learning_rate")
    head = vit.build(config).init(fold(key, "head"))[0]["head"]
    return jax.device_get(params | {"head": head})
