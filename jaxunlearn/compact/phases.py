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

from jaxunlearn.attribution import masks
from jaxunlearn.compact import fitting, measure
from jaxunlearn.compact.fitting import HERE, Images, Placement, accuracy_of, fit, plain_batch
from jaxunlearn.compact.recipe import Recipe, Warp
from jaxunlearn.compact.schedules import LAYERS, layers_of
from jaxunlearn.core import ensemble, members, optimizers, tree
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

_ACCURACIES = tuple(f"accuracy_{i + 1}" for i in range(len(BRANCHES)))


def train_dual(
    pair: Pair, recipe: Recipe, images: Images, keys: Key, where: Placement = HERE
) -> members.Fitted:
    """Stage A: both branches read the same batch, the second one augmented (A.2 of the paper).

    Training ends when either branch has stopped improving, and each keeps the weights of its own
    best epoch. Validation is not augmented.

    Args:
        pair: the network.
        recipe: settings of the training.
        images: the data.
        keys: key of each model, [N].
        where: see `Placement`.

    Returns:
        States of `pair.dual`; checks `accuracy_1`, `accuracy_2` for each epoch.
    """
    stop = EarlyStop("", mode="max", patience=5, min_delta=0.001, start=3, restore=None)
    # The notebook's checkpoints know neither a least gain nor first epochs that do not count.
    keep = functools.partial(EarlyStop, mode="max", patience=recipe.dual_epochs + 1)
    stops = [dataclasses.replace(stop, metric=metric) for metric in _ACCURACIES]
    stops += [keep(m, restore=f"{b}/.*") for m, b in zip(_ACCURACIES, BRANCHES, strict=True)]
    objective, nadam = _in_parts(dual_objective(pair.dual)), _nadam(recipe.learning_rate)
    evaluate = _accuracies(pair.dual)
    stage = Stage("dual", objective, None, nadam, 1, evaluate=evaluate, stops=tuple(stops))
    init_keys = jax.vmap(lambda key: fold(key, "init", "dual"))(keys)
    state = members.init(*jax.vmap(pair.dual.init)(init_keys))
    transform = dual_batch(recipe.warp)
    return fit(stage, recipe.dual_epochs, state, keys, images, recipe.batch_size, where, transform)


def fuse(pair: Pair, recipe: Recipe, params: Tree, keys: Key) -> TrainState:
    """The surgery for each model; see `nn.dual_cnn.fuse`."""
    init_keys = jax.vmap(lambda key: fold(key, "init", "fused"))(keys)
    fresh, _ = jax.vmap(pair.fused.init)(init_keys)
    cut = functools.partial(dual_cnn.fuse, heads=recipe.copied_heads)
    return members.init(jax.vmap(cut)(params, fresh))


def unfreezing(pair: Pair, recipe: Recipe) -> list[tuple[Stage, int]]:
    """Stage B as a list of stages, each with its largest number of epochs (A.4).

    All but the last train by Nadam, the last one by SGD. Stages that train nothing below the heads
    read what the heads say, which is computed once.
    """
    layers = layers_of(recipe.schedule, recipe.last_k)
    stop = EarlyStop("accuracy", mode="max", patience=5, min_delta=recipe.min_delta)
    stages = []
    for i, names in enumerate(layers):
        is_last, is_above = i == len(layers) - 1, set(names) <= {"out", "hidden"}
        model = above_heads(pair.fused) if is_above else pair.fused
        objective = supervised(model) if is_above else _in_parts(supervised(model))
        stage = Stage(
            f"unfreeze.{i}",
            objective,
            None,
            _sgd(recipe) if is_last else _nadam(recipe.learning_rate),
            1,  # as all lengths here: `fit` sets it
            trainable=tuple(LAYERS[name] for name in names),
            evaluate=accuracy_of(model),
            stops=(dataclasses.replace(stop, patience=10) if is_last else stop,),
        )
        stages.append((stage, recipe.epochs[is_last]))
    return stages


def unfreeze(
    pair: Pair,
    recipe: Recipe,
    state: TrainState,
    images: Images,
    keys: Key,
    where: Placement = HERE,
) -> list[members.Fitted]:
    """Runs the stages of `unfreezing` on the images as they are, from states of `fuse`."""
    results, heads, size = [], None, recipe.batch_size
    for stage, n_epochs in unfreezing(pair, recipe):
        if not set(stage.trainable) <= {LAYERS["out"], LAYERS["hidden"]}:
            heads = None  # the stage changes what they say
        elif heads is None:
            heads = {"x": _heads(pair, state, images, where)}
        result = fit(stage, n_epochs, state, keys, images, size, where, plain_batch, heads)
        state = result.state
        results.append(result)
    return results


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
        recipe: settings with `fold_mode` "independent" or "continued".
        state: state of N models.
        images: the data.
        keys: key of each model, [N].
        where: see `Placement`.

    Returns:
        For each fold the N models after it. Independent folds all start from `state` and run as one
        program; continued ones each start from the one before, so that from the second fold on the
        accuracy on its validation images is that of images that were trained on. Most of them were
        anyway, before the folds; see `unseen_accuracies`.
    """
    if recipe.fold_mode == "none":
        raise ValueError("fold_mode is 'none'; independent or continued is needed")
    train, val = fold_rows(len(images.y), recipe.folds)
    n_models, least = len(keys), int((train >= 0).sum(1).min())
    evaluate, stops = accuracy_of(pair.fused), (EarlyStop("accuracy", mode="max", patience=3),)
    objective = _in_parts(supervised(pair.fused))
    stage = Stage("fold", objective, None, _sgd(recipe), 1, evaluate=evaluate, stops=stops)
    fold_keys = jax.vmap(lambda i: jax.vmap(lambda key: fold(key, "fold", i))(keys))

    def tune(stage: Stage, state: TrainState, folds: list[int]) -> members.Fitted:
        """All models on each of these folds, from states of the models fold by fold."""
        many = fold_keys(jnp.array(folds)).reshape(-1)
        rows = {"train": train, "val": val}
        rows = {name: np.repeat(table[folds], n_models, 0) for name, table in rows.items()}
        n_epochs, size = recipe.fold_epochs, recipe.batch_size
        return fit(stage, n_epochs, state, many, images, size, where, plain_batch, rows, least)

    folds = list(range(recipe.folds))
    if recipe.fold_mode == "independent":
        many = jax.tree.map(lambda x: jnp.tile(x, (recipe.folds, *[1] * (x.ndim - 1))), state)
        fitted = tune(stage, many, folds)
        return [tree.take(fitted, slice(i * n_models, (i + 1) * n_models)) for i in folds]
    results = []
    for i in folds:
        results.append(tune(dataclasses.replace(stage, name=f"fold.{i}"), state, [i]))
        state = results[-1].state
    return results


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
    accuracies = []
    for of_fold, rows in zip(folds, unseen, strict=True):
        filled = np.resize(rows, most) if len(rows) else np.zeros(most, int)  # for one program
        correct = measure.correct(pair.fused, of_fold.state.params, x[filled], y[filled])
        correct = correct[:, : len(rows)]
        accuracies.append(correct.mean(1) if len(rows) else np.full(len(correct), np.nan))
    return np.stack(accuracies)


def fold_rows(n: int, n_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to judge by, for each of K shuffled folds, ended by -1.

    Returns:
        int32 [K, most] each, those of scikit-learn's `KFold` with the author's seed, 42.
    """
    if n_folds > n:
        raise ValueError(f"folds is {n_folds}, but there are {n} images")
    order = np.arange(n)
    np.random.RandomState(42).shuffle(order)
    held_out = np.zeros((n_folds, n), bool)
    for mask, rows in zip(held_out, np.array_split(order, n_folds), strict=True):
        mask[rows] = True
    return masks.tables(~held_out), masks.tables(held_out)


def branch_accuracies(pair: Pair, params: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Accuracy of each branch of each model on images as they are, [N, 2]."""
    rows = jnp.arange(len(y), dtype=jnp.int32)
    reads = {"shared": {"x": jnp.asarray(x), "y": jnp.asarray(y)}, "each": {"val": rows}}
    evaluate = _accuracies(pair.dual)
    # One model at a time: together their activations would not fit a cache.
    of_all = jax.jit(lambda many, reads: jax.lax.map(lambda state: evaluate(state, reads), many))
    checks = of_all(members.init(params), reads)
    return np.stack([checks[name] for name in _ACCURACIES], axis=1)


def _in_parts(objective: Objective) -> Objective:
    """On a CPU by parts of 32 images, whose activations its cache holds."""
    return accumulated(objective, 32) if jax.default_backend() == "cpu" else objective


@functools.cache
def dual_objective(model: Model) -> Objective:
    """Sum of the cross-entropies of both branches, on batches `{"x_1", "x_2", "y"}`."""

    def objective(params, stats, shared, batch, key):
        del shared, key
        logits, stats = model.apply(params, stats, batch["x_1"], batch["x_2"], train=True)
        losses = [jnp.mean(cross_entropy(of_branch, batch["y"])) for of_branch in logits]
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


@functools.cache
def _accuracies(dual: Model) -> Callable[[TrainState, Any], Metrics]:
    both = Model(dual.init, lambda params, stats, x: _stacked(dual.apply(params, stats, x, x)))

    def evaluate(state: TrainState, reads: Any) -> Metrics:
        x, y, counts = fitting.validation(reads)
        logits = predict(both, state.params, state.stats, x)
        right = (jnp.argmax(logits, -1) == y[:, None]).astype(jnp.float32)
        accuracies = (right * counts[:, None]).sum(0) / counts.sum()
        return dict(zip(_ACCURACIES, accuracies, strict=True))

    return evaluate


def _stacked(result: tuple[tuple[jax.Array, ...], Tree]) -> tuple[jax.Array, Tree]:
    logits, stats = result
    return jnp.stack(logits, axis=1), stats


def _heads(pair: Pair, state: TrainState, images: Images, where: Placement) -> np.ndarray:
    """What the heads of each model say of all images, [N, n, 2 n_classes]."""
    reads, many, how = {"x": images.x}, {"params": state.params}, ensemble.pick_mode(True)
    results = ensemble.run(_heads_of(pair.fused), reads, many, width=1, mode=how, mesh=where.mesh)
    return results["heads"]


@functools.cache
def _heads_of(model: Model) -> Callable[[Any, Any], Any]:
    def heads_of(params: Tree, stats: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        return model.apply(params, stats, augment.as_float(x), stop_at="heads")

    heads = Model(model.init, heads_of)

    def run(shared: Any, member: Any) -> Any:
        return {"heads": predict(heads, member["params"], {}, shared["x"])}

    return run


# Equal rates give the same optimizer, so that stages find their programs compiled.
_nadam = functools.cache(optimizers.keras_nadam)
_keras_sgd = functools.cache(optimizers.keras_sgd)


def _sgd(recipe: Recipe) -> Any:
    return _keras_sgd(recipe.sgd_learning_rate, 0.9, recipe.weight_decay)
