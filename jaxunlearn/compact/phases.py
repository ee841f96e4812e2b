"""The training of the lightweight CNN: two branches, their fusion, unfreezing, folds.

Every function takes several models at once, one for each key: seeds, or seeds times folds. Their
states have a leading axis, and each model stops on its own (`core.members`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.compact import measure
from jaxunlearn.compact.fitting import (
    HERE,
    Images,
    Placement,
    accuracy_of,
    fit,
    plain_batch,
    validation,
)
from jaxunlearn.compact.recipe import Recipe, Warp
from jaxunlearn.compact.schedules import LAYERS, layers_of, of_layers
from jaxunlearn.core import ensemble, members, optimizers
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.loop import EarlyStop
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import Metrics, Objective, TrainState, accumulated, supervised
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import augment
from jaxunlearn.nn.images import dual_cnn
from jaxunlearn.nn.images.dual_cnn import BRANCHES, Pair


def train_dual(
    pair: Pair, recipe: Recipe, images: Images, keys: Key, where: Placement = HERE
) -> members.Fitted:
    """Stage A: both branches read the same batch, the second one augmented (A.2 of the paper).

    Training ends when either branch has stopped improving, and each keeps the weights of its own
    best epoch. Validation is not augmented.

    Args:
        pair: the network.
        recipe: how.
        images: the data.
        keys: of the models, [N].
        where: where.

    Returns:
        States of `pair.dual`; checks `accuracy_1`, `accuracy_2` for each epoch.
    """
    stop = functools.partial(
        EarlyStop, mode="max", patience=5, min_delta=0.001, start=3, restore=None
    )
    # The notebook's checkpoints know neither a least gain nor first epochs that do not count.
    keep = functools.partial(EarlyStop, mode="max", patience=recipe.dual_epochs + 1)
    metrics = [f"accuracy_{i + 1}" for i in range(len(BRANCHES))]
    stage = Stage(
        "dual",
        _in_parts(dual_objective(pair.dual)),
        None,
        _nadam(recipe.learning_rate),
        0,
        evaluate=_accuracies(pair.dual),
        stops=(
            *(stop(metric) for metric in metrics),
            *(keep(m, restore=f"{b}/.*") for m, b in zip(metrics, BRANCHES, strict=True)),
        ),
    )
    own_keys = jax.vmap(lambda key: fold(key, "init", "dual"))(keys)
    state = members.init(*jax.vmap(pair.dual.init)(own_keys))
    transform = dual_batch(recipe.warp)
    return fit(stage, recipe.dual_epochs, state, keys, images, recipe.batch_size, where, transform)


def fuse(pair: Pair, recipe: Recipe, params: Tree, keys: Key) -> TrainState:
    """The surgery for each model; see `nn.dual_cnn.fuse`."""
    own_keys = jax.vmap(lambda key: fold(key, "init", "fused"))(keys)
    fresh, _ = jax.vmap(pair.fused.init)(own_keys)
    cut = functools.partial(dual_cnn.fuse, heads=recipe.copied_heads)
    return members.init(jax.vmap(cut)(params, fresh))


def unfreezing(pair: Pair, recipe: Recipe) -> list[tuple[Stage, int]]:
    """Stage B as a list of stages, each with its largest number of epochs (A.4).

    All but the last train by Nadam, the last one by SGD. Stages that train nothing below the heads
    read what the heads say, which is computed once.
    """
    layers = layers_of(recipe.schedule, recipe.last_k)
    stop = EarlyStop("accuracy", mode="max", patience=5, min_delta=recipe.min_delta)
    before, last = recipe.epochs
    base = Stage("unfreeze", supervised(pair.fused), None, _nadam(recipe.learning_rate), 0)
    found = []
    for i, stage in enumerate(of_layers(base, layers)):
        is_last = i == len(layers) - 1
        is_above = _is_above_heads(stage)
        model = above_heads(pair.fused) if is_above else pair.fused
        objective = supervised(model)
        found.append(
            (
                dataclasses.replace(
                    stage,
                    objective=objective if is_above else _in_parts(objective),
                    evaluate=accuracy_of(model),
                    optimizer=_sgd(recipe) if is_last else stage.optimizer,
                    stops=(dataclasses.replace(stop, patience=10) if is_last else stop,),
                ),
                last if is_last else before,
            )
        )
    return found


def unfreeze(
    pair: Pair,
    recipe: Recipe,
    state: TrainState,
    images: Images,
    keys: Key,
    where: Placement = HERE,
) -> list[members.Fitted]:
    """Runs the stages of `unfreezing` on the images as they are, from states of `fuse`."""
    found, heads = [], None
    for stage, n_epochs in unfreezing(pair, recipe):
        own = {}
        if _is_above_heads(stage):
            heads = _heads(pair, state, images, where) if heads is None else heads
            own = {"x": heads}
        result = fit(
            stage, n_epochs, state, keys, images, recipe.batch_size, where, plain_batch, own
        )
        state = result.state
        # A stage below them changes what the heads say.
        heads = heads if _is_above_heads(stage) else None
        found.append(result)
    return found


def fine_tune(
    pair: Pair,
    recipe: Recipe,
    state: TrainState,
    images: Images,
    keys: Key,
    where: Placement = HERE,
) -> list[members.Fitted]:
    """Stage C: K folds of all images, the validation images of before among them (A.5).

    Args:
        pair: the network.
        recipe: with `fold_mode` "independent" or "continued".
        state: of N models.
        images: the data.
        keys: [N].
        where: where.

    Returns:
        For each fold the N models after it. Independent folds all start from `state` and run as one
        program; continued ones each start from the one before, so that from the second fold on the
        accuracy on its validation images is that of images that were trained on. Most of them were
        anyway, before the folds; see `unseen_accuracies`.
    """
    if recipe.fold_mode == "none":
        raise ValueError("fold_mode is 'none'; independent or continued is needed")
    train, val = fold_rows(len(images.y), recipe.folds)
    stage = Stage(
        "fold",
        _in_parts(supervised(pair.fused)),
        None,
        _sgd(recipe),
        0,
        evaluate=accuracy_of(pair.fused),
        stops=(EarlyStop("accuracy", mode="max", patience=3),),
    )
    least = int((train >= 0).sum(1).min())
    tune = functools.partial(
        fit, images=images, batch_size=recipe.batch_size, where=where, least=least
    )
    n_models, found = len(keys), []
    if recipe.fold_mode == "independent":
        all_keys = jax.vmap(lambda i: jax.vmap(lambda key: fold(key, "fold", i))(keys))(
            jnp.arange(recipe.folds)
        ).reshape(-1)
        many = jax.tree.map(lambda x: jnp.tile(x, (recipe.folds, *[1] * (x.ndim - 1))), state)
        own = {"train": np.repeat(train, n_models, 0), "val": np.repeat(val, n_models, 0)}
        result = tune(stage, recipe.fold_epochs, many, all_keys, transform=plain_batch, own=own)
        parts = [slice(i * n_models, (i + 1) * n_models) for i in range(recipe.folds)]
        return [jax.tree.map(lambda x, part=part: x[part], result) for part in parts]
    for i in range(recipe.folds):
        own_keys = jax.vmap(lambda key, i=i: fold(key, "fold", i))(keys)
        own = {"train": np.repeat(train[[i]], n_models, 0), "val": np.repeat(val[[i]], n_models, 0)}
        named = dataclasses.replace(stage, name=f"fold.{i}")
        result = tune(named, recipe.fold_epochs, state, own_keys, transform=plain_batch, own=own)
        state = result.state
        found.append(result)
    return found


def unseen_accuracies(pair: Pair, folds: list[members.Fitted], images: Images) -> np.ndarray:
    """How good each fold is on those of its images that the stages before did not train on.

    Independent folds have not trained on these either; continued ones have, from the second fold
    on. Both have used them to choose among epochs, so that a little above the accuracy on test
    images is to be expected of all.

    Returns:
        Accuracies [K, N]; NaN for a fold without such images.
    """
    x, y = np.asarray(images.x[: images.n_val]), np.asarray(images.y[: images.n_val])
    _, val = fold_rows(len(images.y), len(folds))
    unseen = [rows[(rows >= 0) & (rows < images.n_val)] for rows in val]
    most = max(map(len, unseen))
    found = []
    for of_fold, rows in zip(folds, unseen, strict=True):
        filled = np.resize(rows, most) if len(rows) else np.zeros(most, int)  # for one program
        correct = measure.correct(pair.fused, of_fold.state.params, x[filled], y[filled])
        own = correct[:, : len(rows)]
        found.append(own.mean(1) if len(rows) else np.full(len(own), np.nan))
    return np.stack(found)


def fold_rows(n: int, n_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to judge by, for each of K shuffled folds, ended by -1.

    Returns:
        int32 [K, most] each, those of scikit-learn's `KFold` with the author's seed, 42.
    """
    if n_folds > n:
        raise ValueError(f"folds is {n_folds}, but there are {n} images")
    order = np.arange(n)
    np.random.RandomState(42).shuffle(order)
    held_out = [np.sort(part) for part in np.array_split(order, n_folds)]
    splits = [(np.setdiff1d(order, part), part) for part in held_out]
    tables = []
    for part in (0, 1):
        most = max(len(split[part]) for split in splits)
        table = np.full((n_folds, most), -1, np.int32)
        for row, split in zip(table, splits, strict=True):
            row[: len(split[part])] = split[part]
        tables.append(table)
    return tables[0], tables[1]


def branch_accuracies(pair: Pair, params: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Accuracy of each branch of each model on images as they are, [N, 2]."""
    rows = jnp.arange(len(y), dtype=jnp.int32)
    reads = {"shared": {"x": jnp.asarray(x), "y": jnp.asarray(y)}, "own": {"val": rows}}
    evaluate = _accuracies(pair.dual)
    # One model at a time: together their activations would not fit a cache.
    of_all = jax.jit(lambda many, reads: jax.lax.map(lambda state: evaluate(state, reads), many))
    found = of_all(members.init(params), reads)
    return np.stack([found[f"accuracy_{i + 1}"] for i in range(len(BRANCHES))], axis=1)


def _in_parts(objective: Objective) -> Objective:
    """On a CPU by parts of 32 images, whose activations its cache holds."""
    return accumulated(objective, 32) if jax.default_backend() == "cpu" else objective


@functools.cache
def dual_objective(model: Model) -> Objective:
    """Sum of the cross-entropies of both branches, on batches `{"x_1", "x_2", "y"}`."""

    def objective(params, stats, shared, batch, key):
        del shared, key
        logits, stats = model.apply(params, stats, batch["x_1"], batch["x_2"], train=True)
        losses = [jnp.mean(cross_entropy(own, batch["y"])) for own in logits]
        return losses[0] + losses[1], (stats, {"loss_1": losses[0], "loss_2": losses[1]})

    return objective


@functools.cache
def dual_batch(warp: Warp) -> Callable[[Any, Key], Any]:
    """A transform of batches: the images as they are, and augmented afresh."""

    def transform(batch: Any, key: Key) -> Any:
        x = augment.as_float(batch["x"])
        return {"x_1": x, "x_2": augment.warp(key, x, **dataclasses.asdict(warp)), "y": batch["y"]}

    return transform


@functools.cache
def above_heads(model: Model) -> Model:
    """The fused network from what its heads say."""
    return Model(model.init, functools.partial(model.apply, start_at="heads"))


def _is_above_heads(stage: Stage) -> bool:
    return set(stage.trainable) <= {LAYERS["out"], LAYERS["hidden"]}


@functools.cache
def _accuracies(dual: Model) -> Callable[[TrainState, Any], Metrics]:
    both = Model(dual.init, lambda params, stats, x: _stacked(dual.apply(params, stats, x, x)))

    def evaluate(state: TrainState, reads: Any) -> Metrics:
        x, y, counts = validation(reads)
        logits = predict(both, state.params, state.stats, x)
        right = (jnp.argmax(logits, -1) == y[:, None]).astype(jnp.float32)
        accuracies = (right * counts[:, None]).sum(0) / counts.sum()
        return {f"accuracy_{i + 1}": accuracies[i] for i in range(len(BRANCHES))}

    return evaluate


def _stacked(result: tuple[tuple[jax.Array, ...], Tree]) -> tuple[jax.Array, Tree]:
    logits, stats = result
    return jnp.stack(logits, axis=1), stats


def _heads(pair: Pair, state: TrainState, images: Images, where: Placement) -> np.ndarray:
    """What the heads of each model say of all images, [N, n, 2 n_classes]."""
    found = ensemble.run(
        _heads_of(pair.fused),
        {"x": images.x},
        {"params": state.params},
        width=1,
        mode=ensemble.pick_mode(True),
        mesh=where.mesh,
    )
    return found["heads"]


@functools.cache
def _heads_of(model: Model) -> Callable[[Any, Any], Any]:
    heads = Model(
        model.init,
        lambda params, stats, x: model.apply(params, stats, augment.as_float(x), stop_at="heads"),
    )

    def run(shared: Any, member: Any) -> Any:
        return {"heads": predict(heads, member["params"], {}, shared["x"])}

    return run


# Equal rates give the same optimizer, so that stages find their programs compiled.
@functools.cache
def _nadam(learning_rate: float) -> Any:
    return optimizers.keras_nadam(learning_rate)


def _sgd(recipe: Recipe) -> Any:
    return _sgd_of(recipe.sgd_learning_rate, recipe.weight_decay)


@functools.cache
def _sgd_of(learning_rate: float, weight_decay: float) -> Any:
    return optimizers.keras_sgd(learning_rate, 0.9, weight_decay)
