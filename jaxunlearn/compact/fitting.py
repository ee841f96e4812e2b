"""How models are fitted to images: one stage for several models at once, each with its own rows.

Whatever network and recipe: `training` and `slim` say which stages there are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn import data
from jaxunlearn.core import ensemble, members, stages
from jaxunlearn.core.keys import Key
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import Metrics, TrainState
from jaxunlearn.data import augment


class Images(NamedTuple):
    """What is trained on, and how it is split.

    Attributes:
        x: [n, H, W, C], uint8 or floats in [0, 1].
        y: int32 [n].
        n_val: the first rows, which are not trained on before the folds.
    """

    x: jax.Array
    y: jax.Array
    n_val: int

    def check(self) -> None:
        """Whether there is something to train on and to judge by.

        Raises:
            ValueError: there is not, or images and labels differ in number.
        """
        if len(self.x) != len(self.y) or not 1 <= self.n_val < len(self.y):
            raise ValueError(
                f"images has {len(self.x)} x, {len(self.y)} y and n_val {self.n_val}; as many of "
                "each, and n_val from 1 to less than that, are needed"
            )


class Placement(NamedTuple):
    """Where models are computed, and where it is kept and told how far they are.

    Attributes:
        mesh: device mesh with an axis `models`.
        point: `point(phase)` keeps how far a phase is, or None.
        tell: `tell(phase, epochs done, most epochs)`, at a phase's start and after each epoch.
    """

    mesh: Mesh | None = None
    point: Callable[[str], ResumePoint | None] = lambda phase: None
    tell: Callable[[str, int, int], None] = lambda phase, done, most: None


HERE = Placement()


def fit(
    stage: Stage,
    n_epochs: int,
    state: TrainState,
    keys: Key,
    images: Images,
    batch_size: int,
    where: Placement,
    transform: Callable[[Any, Key], Any],
    own: dict[str, Any] | None = None,
    least: int | None = None,
) -> members.Fitted:
    """One stage for all models; an epoch is a block with a check at its end.

    Args:
        stage: its data, length and block are set here.
        n_epochs: the most.
        state: leading axis N.
        keys: of the models; each derives the stage's own.
        images: the data.
        batch_size: incomplete batches are dropped.
        where: where.
        transform: of the batches.
        own: of each model, leading axis N: `train` and `val`, the rows it learns and is judged by
            (by default those of `images`), ended by -1, and `x`, what it reads in place of images.
        least: rows to train on that each model has at least, if they differ.

    Raises:
        ValueError: see `Images.check`.
        NonFiniteError: a model diverged, see `members.run`.
    """
    images.check()
    n_models, n = len(keys), len(images.y)
    own = dict(own or {})
    if "train" not in own:
        rows = np.arange(n, dtype=np.int32)
        own["train"] = np.tile(rows[images.n_val :], (n_models, 1))
        own["val"] = np.tile(rows[: images.n_val], (n_models, 1))
    n_train = least or own["train"].shape[1]
    per_epoch = n_train // min(batch_size, n_train)
    stage = dataclasses.replace(stage, n_steps=n_epochs * per_epoch, every=per_epoch)
    own_keys = jax.vmap(lambda key: stages.stage_key(stage, key, (), (stage.name,)))(keys)
    mesh = _no_more_than(where.mesh, n_models)
    where.tell(stage.name, 0, n_epochs)
    return members.run(
        stage,
        state,
        own_keys,
        data=_source(batch_size, least, transform),
        shared={"x": images.x, "y": images.y},
        own=own,
        width=1 if jax.default_backend() == "cpu" else -(-n_models // (mesh.size if mesh else 1)),
        mode=ensemble.pick_mode(True),
        mesh=mesh,
        point=where.point(stage.name),
        callback=lambda done, checks: where.tell(stage.name, done, n_epochs),
    )


def _no_more_than(mesh: Mesh | None, n_models: int) -> Mesh | None:
    """No more devices than models: what is left over would compute a model again."""
    if mesh is None or mesh.size <= n_models:
        return mesh
    return Mesh(mesh.devices.reshape(-1)[:n_models], mesh.axis_names, axis_types=mesh.axis_types)


@functools.cache
def _source(batch_size: int, least: int | None, transform: Callable) -> Callable[[Any], Any]:
    def source(reads: Any) -> Any:
        arrays = {"x": _inputs(reads), "y": reads["shared"]["y"]}
        rows = reads["own"]["train"]
        return data.batches(arrays, rows, batch_size, least=least, transform=transform)

    return source


def _inputs(reads: Any) -> jax.Array:
    """Images, or what a model reads in their place."""
    return reads["own"].get("x", reads["shared"]["x"])


@functools.cache
def accuracy_of(model: Model) -> Callable[[TrainState, Any], Metrics]:
    """An evaluation of a stage: `accuracy` and mean `loss` on a model's validation rows."""

    def evaluate(state: TrainState, reads: Any) -> Metrics:
        x, y, counts = validation(reads)
        logits = predict(model, state.params, state.stats, x)
        losses = cross_entropy(logits, y)
        right = (jnp.argmax(logits, -1) == y).astype(jnp.float32)
        total = counts.sum()
        return {"accuracy": (right * counts).sum() / total, "loss": (losses * counts).sum() / total}

    return evaluate


def validation(reads: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a model is judged by: images, labels, and 1 for each that counts (not rows of -1)."""
    rows = reads["own"]["val"]
    return augment.as_float(_inputs(reads)[rows]), reads["shared"]["y"][rows], (rows >= 0) * 1.0


def plain_batch(batch: Any, key: Key) -> Any:
    """A transform of batches: images in [0, 1], nothing else."""
    del key
    return batch | {"x": augment.as_float(batch["x"])}
