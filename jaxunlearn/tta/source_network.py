"""The network that is adapted: read from a file, or trained on the source."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import nn
from jaxunlearn.core import chunks, optimizers, stages, step, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Model
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import augment, batches
from jaxunlearn.nn.files import writer
from jaxunlearn.tta.deployment import Samples
from jaxunlearn.tta.settings import Training


class Trained(NamedTuple):
    """A network and its parameters; `params` is None where they are still to be trained."""

    model: Model
    params: Tree | None
    stats: Tree | None


def opened(name: str, weights: str | None, image: tuple[int, ...], n_classes: int) -> Trained:
    """The network of a name, with the weights of a file if one is given.

    Raises:
        ValueError: a name or a file that does not fit.
    """
    if weights is None:
        return Trained(nn.by_name(name, image, n_classes), None, None)
    read = nn.classifiers.from_pretrained(weights, name, n_classes)
    return Trained(read.model, read.params, read.stats)


def train(
    model: Model,
    samples: Samples,
    recipe: Training,
    key: Key,
    *,
    report: Callable[[int, int], None] | None = None,
    point: ResumePoint | None = None,
) -> tuple[Tree, Tree]:
    """Trains a network on images in [0, 1]; parameters and running statistics.

    Args:
        model: the network.
        samples: the source, uint8 or floats.
        recipe: how.
        key: decides initialisation, batches and augmentation.
        report: called after each epoch with the steps taken and those in all.
        point: where each epoch is kept to be resumed from.
    """
    arrays = {"x": samples.x, "y": samples.y}
    rows = np.arange(len(samples.y))
    source = batches(
        arrays, rows, recipe.batch_size, transform=_transform(recipe.flip, recipe.shift)
    )
    n_steps = recipe.epochs * source.steps_per_epoch
    schedule = optimizers.triangular(recipe.learning_rate, n_steps)
    rule = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )
    stage = stages.Stage(
        "source", step.supervised(model), source, rule, n_steps, block=source.steps_per_epoch
    )
    params, stats = model.init(fold(key, "init"))
    state = step.init_state(params, rule, stats)
    state, _ = stages.run_stage(stage, state, fold(key, "train"), report=report, point=point)
    return state.params, state.stats


@functools.cache  # the same augmentation is the same function, and so the same program
def _transform(flip: bool, shift: int) -> Callable[[Any, Key], Any]:
    changes: list[Any] = [augment.flip] if flip else []
    changes += [functools.partial(augment.translate, pixels=shift)] if shift else []
    change = augment.compose(*changes)
    return lambda batch, key: batch | {"x": augment.as_float(change(key, batch["x"]))}


def save(folder: Path, name: str, params: Tree, stats: Tree, stem: str = "network") -> None:
    """Writes a wide residual network to `STEM.safetensors`, which `opened` reads."""
    leaves = tree.named({"params": params, "stats": stats})
    writer.save(folder, leaves, nn.classifiers.tensor_table(name), {}, stem=stem)


def as_pictures(images: np.ndarray) -> np.ndarray:
    """Images as uint8 of three channels: grey ones repeat theirs, floats in [0, 1] are rounded.

    Raises:
        ValueError: images of two or four channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images have {images.shape[-1]} channels; 1 or 3 are needed")
    if images.dtype != np.uint8:
        images = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def accuracy(model: Model, params: Tree, stats: Tree, samples: Samples) -> float:
    """The share of images that the network classifies as labelled."""
    logits = _logits(model, params, stats, jnp.asarray(samples.x))
    return float(jnp.mean(logits.argmax(-1) == jnp.asarray(samples.y)))


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: Model, params: Tree, stats: Tree, x: jax.Array) -> jax.Array:
    def of_some(x: jax.Array) -> jax.Array:
        return model.apply(params, stats, augment.as_float(x))[0]

    return chunks.mapped(of_some, x, 500)
