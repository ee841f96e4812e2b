"""The job: a small network is trained on images, judged, measured and written to files."""

import dataclasses
import functools
import os
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data as datasets
from jaxunlearn import nn
from jaxunlearn.compact import architecture as networks
from jaxunlearn.compact import files, fitting, measure, slim
from jaxunlearn.compact import phases as training
from jaxunlearn.compact.architecture import Architecture
from jaxunlearn.compact.recipe import Recipe
from jaxunlearn.compact.slim import SlimRecipe
from jaxunlearn.core import members, records, study, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.disk import replacing
from jaxunlearn.core.keys import Key
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.run_folder import Progress, RunFolder, run_record, ticking
from jaxunlearn.core.study import Where
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import Dataset

_DIGITS_SIZE = 28
# Settings that had other names in folders of earlier runs.
_RENAMED = {"models": "n_models", "n_test": "n_val"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained, and on what.

    Attributes:
        data: a data set, an `.npz` file or a folder of images, see `data.load`.
        n_train: training images, of which the first 10,000, at most a fifth, validate before the
            folds; by default all. Those of a file or folder are shuffled once, always alike.
        n_val: images of the data set's second part, which test the finished models and are not
            looked at before; by default all.
        size: height and width that images, of any size, are scaled to; by default they stay as they
            are, but digits become 28 x 28, and pictures of a folder that are of several sizes 32 x
            32, which is said.
        n_models: number of models, from different draws. The files hold the one that is best on
            validation images; with independent folds those are the fold's own, most of which the
            stages before were trained on.
        seed: seed of the first model; the next one's is higher by 1.
        network: "dual", the paper's; "slim", separable convolutions with BatchNorm under the same
            budget; or "minimal", the 4,862 parameters of `ruslangrimov/mnist-minimal-model`.
        filters: n, filters of a branch's first convolution in "dual".
        hidden: h, units between the branches and the answer in "dual".
        channels: channels of the convolutions in "slim".
        recipe: training of "dual".
        slim: training of the others.
    """

    data: str = "digits"
    n_train: int | None = None
    n_val: int | None = None
    size: int | None = None
    n_models: int = 1
    seed: int = 0
    network: networks.Name = "dual"
    filters: int = 10
    hidden: int = 32
    channels: tuple[int, ...] = nn.SLIM_CHANNELS
    recipe: Recipe = Recipe()
    slim: SlimRecipe = SlimRecipe()


@dataclasses.dataclass(frozen=True)
class Job(study.Job[Settings]):
    """Work whose settings have been checked and whose folder is ready; see `prepare`."""

    dataset: Dataset
    architecture: Architecture

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        recipe = self.settings.recipe
        if self.settings.network != "dual":
            return {"slim": float(self.settings.slim.epochs), "evaluation": 1.0}
        phases = {"dual": 1.5 * recipe.dual_epochs}
        unfreezing = training.unfreezing(self.architecture.pair, recipe)
        phases |= {stage.name: float(epochs) for stage, epochs in unfreezing}
        if recipe.fold_mode == "independent":
            phases["fold"] = float(recipe.folds * recipe.fold_epochs)
        if recipe.fold_mode == "continued":
            phases |= {f"fold.{i}": float(recipe.fold_epochs) for i in range(recipe.folds)}
        return phases | {"evaluation": 1.0}


@study.begins
def prepare(settings: Settings, where: Where) -> Job:
    """Checks everything that can be wrong before work starts.

    Args:
        settings: settings of the study.
        where: where; the devices have an axis `models`.

    Raises:
        ValueError: settings, data or a folder that do not fit, before anything is compiled.
    """
    if settings.n_models < 1 or not 0 <= settings.seed <= 2**31 - settings.n_models:
        raise ValueError(
            f"n_models is {settings.n_models} and seed {settings.seed}; at least 1 model "
            "is needed, and seeds from 0 to 2^31 - 1"
        )
    size = settings.size
    if size is None and settings.data == "digits":
        size = _DIGITS_SIZE
    if size is not None and not 10 <= size <= 1024:
        raise ValueError(f"size is {size}; 10 to 1024 pixels are allowed")
    dataset = datasets.load(
        settings.data,
        settings.n_train,
        settings.n_val,
        size=size,
        default_size=datasets.DEFAULT_SIZE,
        data_dir=where.data_dir,
    )
    if settings.data != "digits":
        settings = dataclasses.replace(settings, size=dataset.size)
    if dataset.n_classes < 2:
        raise ValueError(f"data is {settings.data!r} with one class; at least 2 are needed")
    dataset = _mixed(dataset, settings, where.data_dir)
    shared = ("network", "filters", "hidden", "channels")
    architecture = Architecture(
        dataset.x_train.shape[1:],
        dataset.n_classes,
        classes=dataset.classes,
        **{name: getattr(settings, name) for name in shared},
    )
    _ = architecture.model  # raises for sizes that do not fit, before the folder is made
    n_train = len(dataset.x_train)
    has_folds = settings.network == "dual" and settings.recipe.fold_mode != "none"
    least = max(5, settings.recipe.folds if has_folds else 0)
    if n_train < least:
        raise ValueError(f"n_train is {n_train}; at least {least} are needed for this recipe")
    record = run_record(settings, data=dataset.arrays)
    return Job(
        settings=settings,
        record=record,
        folder=RunFolder(where.out, record, {}, where.resume, _RENAMED),
        mesh=where.mesh or meshes.make({"models": 1}),
        dataset=dataset,
        architecture=architecture,
    )


def execute(job: Job, progress: Progress = study.quiet) -> dict[str, Any]:
    """Does the work of a prepared job.

    Writes `results.json`, `model.safetensors`, `model-int8.safetensors` (see `files`) and
    `model.stablehlo`. A run that was stopped goes on from the last epoch to the same bits.

    Args:
        job: from `prepare`.
        progress: called after each epoch.

    Returns:
        The contents of `results.json`.

    Raises:
        NonFiniteError: a model diverged; it is named.
    """
    data = job.dataset
    n_val = min(10_000, len(data.x_train) // 5)
    images = fitting.Images(jnp.asarray(data.x_train), jnp.asarray(data.y_train), n_val)
    keys = jax.vmap(jax.random.key)(job.settings.seed + jnp.arange(job.settings.n_models))
    ticks = functools.cache(lambda phase, most: ticking(job.folder, phase, most, progress))
    where = fitting.Placement(
        job.mesh,
        lambda phase: ResumePoint(job.folder.path / "phases" / phase),
        lambda phase, done, most: ticks(phase, most)(done),
    )
    train = _train_dual if job.settings.network == "dual" else _train_slim
    finals, val, report = train(job, images, keys, where)
    progress("evaluation", 0, 1)
    job.folder.write_json("results.json", _judged(job, finals, val) | report)
    progress("evaluation", 1, 1)
    return records.read(job.folder.path / "results.json")


run = study.runner(prepare, execute)


# The final parameters of all models, their validation accuracies, and what else is reported.
_Outcome: TypeAlias = tuple[Tree, np.ndarray, dict[str, Any]]


def _train_slim(job: Job, images: fitting.Images, keys: Key, where: fitting.Placement) -> _Outcome:
    """One stage; BatchNorm folds into the convolutions."""
    trained = slim.train(job.architecture.trained, job.settings.slim, images, keys, where)
    folded = jax.vmap(nn.fold_batch_norm)(trained.state.params, trained.state.stats)
    return folded, trained.checks["accuracy"][:, -1], {"slim": _curves(trained)}


def _train_dual(job: Job, images: fitting.Images, keys: Key, where: fitting.Placement) -> _Outcome:
    """The paper's three phases; the result is that of the best or the last fold."""
    recipe, pair = job.settings.recipe, job.architecture.pair
    dual = training.train_dual(pair, recipe, images, keys, where)
    fused = training.fuse(pair, recipe, dual.state.params, keys)
    stages = training.unfreeze(pair, recipe, fused, images, keys, where)
    last = stages[-1]
    report = {
        "dual": _curves(dual)
        | {
            "best_epochs": [best.tolist() for best in dual.best_checks[2:]],
            "test_accuracies": training.branch_accuracies(
                pair, dual.state.params, job.dataset.x_val, job.dataset.y_val
            ).tolist(),
        },
        "unfreezing": [_curves(stage) for stage in stages],
        "unfrozen_test_accuracies": _test_accuracies(job, last.state.params).tolist(),
    }
    if recipe.fold_mode == "none":
        return last.state.params, _best(last), report
    folds = training.fine_tune(pair, recipe, last.state, images, keys, where)
    finals, val, report["folds"] = _of_folds(job, folds, images)
    # What continued folds say of themselves is not fit to choose by.
    return finals, _best(last) if val is None else val, report


def _of_folds(
    job: Job, folds: list[members.Fitted], images: fitting.Images
) -> tuple[Tree, np.ndarray | None, dict[str, Any]]:
    """The models of the best or the last fold, their accuracies if fit to choose by, a report."""
    recipe, n_models = job.settings.recipe, job.settings.n_models
    val = np.stack([_best(fold) for fold in folds])  # [K, N]
    test = np.stack([_test_accuracies(job, fold.state.params) for fold in folds])
    unseen = training.unseen_accuracies(job.architecture.pair, folds, images)
    is_honest = recipe.fold_mode == "independent"
    chosen = val.argmax(0) if is_honest else np.full(n_models, len(folds) - 1)
    finals = tree.stack(tree.take(folds[k].state.params, i) for i, k in enumerate(chosen))
    report = {
        "mode": recipe.fold_mode,
        "val": val.T.tolist(),
        "test": test.T.tolist(),
        "of_model": chosen.tolist(),
        # Of images that no stage before the folds has trained on.
        "val_unseen": [[_known(value) for value in of_model] for of_model in unseen.T],
        # Above 0 where the images that judge a fold have been trained on.
        "val_above_test": (val[1:] - test[1:]).mean(0).tolist(),
        "unseen_above_test": [
            _known(gaps[~np.isnan(gaps)].mean()) if (~np.isnan(gaps)).any() else None
            for gaps in (unseen[1:] - test[1:]).T
        ],
        "curves": [_curves(fold) for fold in folds],
    }
    return finals, val.max(0) if is_honest else None, report


def _judged(job: Job, finals: Tree, val: np.ndarray) -> dict[str, Any]:
    """All models on test images; the files of the best one and what it costs."""
    model, y = job.architecture.model, job.dataset.y_val
    models = [tree.take(finals, i) for i in range(job.settings.n_models)]
    logits = [measure.logits_of(model, params, job.dataset.x_val) for params in models]
    accuracies = [float((of_model.argmax(-1) == y).mean()) for of_model in logits]
    best = int(val.argmax())
    return _written(job, models[best]) | {
        "schema": 1,
        "test_accuracy": float(np.mean(accuracies)),
        "test_accuracies": accuracies,
        "val_accuracies": val.tolist(),  # the best fold's on its own images, mostly trained on
        "file_is_model": best,
        "classes": list(job.architecture.classes),
        "confusion": measure.confusion(logits[best], y).tolist(),
        # By phase, compilation included.
        "seconds": {phase: sum(kinds.values()) for phase, kinds in job.folder.seconds.items()},
        **job.record,
    }


def _best(trained: members.Fitted) -> np.ndarray:
    """Validation accuracy of the weights that were kept, of each model."""
    accuracy, kept = trained.checks["accuracy"], trained.best_checks[0]
    return accuracy[np.arange(len(kept)), kept]


def _test_accuracies(job: Job, params: Tree) -> np.ndarray:
    """The test accuracy of each model, [N]."""
    right = measure.correct(job.architecture.model, params, job.dataset.x_val, job.dataset.y_val)
    return right.mean(1)


def _known(value: np.floating) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def _curves(trained: members.Fitted) -> dict[str, Any]:
    """Losses and checks by epoch, of each model as long as it trained."""
    histories = trained.checks | {f"train_{name}": a for name, a in trained.metrics.items()}
    return {
        name: [of_model[~np.isnan(of_model)].tolist() for of_model in history]
        for name, history in histories.items()
    }


def _written(job: Job, params: Tree) -> dict[str, Any]:
    """Writes a model's files; what it costs."""
    folder, architecture, test = job.folder.path, job.architecture, job.dataset
    names = ("model.safetensors", "model-int8.safetensors", "model.stablehlo")
    files.save(folder / names[0], architecture, params)
    files.save(folder / names[1], architecture, params, int8=True)
    program = files.export(architecture.model, params, architecture.input_shape)
    with replacing(folder / names[2]) as file:
        file.write(program)
    rounded = files.load(folder / names[1]).params
    logits = measure.logits_of(architecture.model, rounded, test.x_val)
    size = measure.size(architecture.model, params, architecture.input_shape)
    # Weights, and one slot of SGD's momentum or two of AdamW's; with BatchNorm not folded yet.
    n_trained, n_slots = size["parameters"], 1
    if architecture.network != "dual":
        like, _ = jax.eval_shape(architecture.trained.init, jax.random.key(0))
        n_trained, n_slots = tree.size(like), 2
    return size | {
        "training_bytes": 4 * n_trained * (1 + n_slots),
        "file_bytes": {name: (folder / name).stat().st_size for name in names},
        "program": files.readers(program),
        "int8_test_accuracy": float((logits.argmax(-1) == test.y_val).mean()),
        "speed": measure.speed(program, architecture.input_shape),
    }


def _mixed(dataset: Dataset, settings: Settings, data_dir: str | os.PathLike | None) -> Dataset:
    """Training images in a fixed random order where they come from a file or folder.

    There they are sorted by class as a rule, and the first ones are to validate.
    """
    if datasets.local_path(settings.data, data_dir) is None:
        return dataset
    rows = np.random.default_rng(0).permutation(len(dataset.x_train))
    return dataclasses.replace(
        dataset,
        x_train=dataset.x_train[rows],
        y_train=dataset.y_train[rows],
        files_train=tuple(dataset.files_train[i] for i in rows) if dataset.files_train else (),
        rows_train=None if dataset.rows_train is None else dataset.rows_train[rows],
    )
