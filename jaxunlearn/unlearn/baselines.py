"""Baselines: pure functions from one trained model to one that should have forgotten.

Every method has the form `method(model, params, stats, problem, key, **settings) -> Unlearned`, and
a frozen dataclass of its settings; `methods.METHODS` holds the pairs. Counts (`epochs`,
`batch_size`) are static; rates and weights may be traced, so they can be swept by `vmap`. `**sgd`
stands for what `core.optimizers.sgd` takes: `learning_rate`, `momentum` and, where the method's
settings have it, `weight_decay`.
Passes are counted over the set that is named. Incomplete batches of the retain set are dropped, as
in training; the forget set is small, and its batches are shrunk so that a pass covers it evenly.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.core import keys, optimizers
from jaxunlearn.core.model import Model
from jaxunlearn.core.step import supervised, weighted_sum
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import Joined, batches
from jaxunlearn.unlearn._problem import Problem, Unlearned
from jaxunlearn.unlearn.method_settings import Ascent as Ascent
from jaxunlearn.unlearn.method_settings import AscentDescent as AscentDescent
from jaxunlearn.unlearn.method_settings import FineTune as FineTune
from jaxunlearn.unlearn.method_settings import NoSettings as NoSettings
from jaxunlearn.unlearn.method_settings import RandomLabels as RandomLabels
from jaxunlearn.unlearn.scratch import descend, train


def none(model: Model, params: Tree, stats: Tree, problem: Problem, key) -> Unlearned:
    """Does nothing: what forgetting has to start from."""
    del model, problem, key
    return Unlearned(params, stats, jnp.zeros(0), 0)


def retrain(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, **training
) -> Unlearned:
    """Trains a new model on the retain set: the oracle, exact by definition.

    Its settings are those of `scratch.Training`.
    """
    del params, stats
    return train(model, problem, problem.retain, key, **training)


def finetune(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, *, epochs, batch_size, **sgd
) -> Unlearned:
    """Goes on training on the retain set and relies on catastrophic forgetting."""
    source = batches(problem.arrays, problem.retain, batch_size)
    n_steps, optimizer = epochs * source.steps_per_epoch, optimizers.sgd(**sgd)
    return descend(supervised(model), optimizer, params, stats, source, key, n_steps)


def ascent(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, *, epochs, batch_size, **sgd
) -> Unlearned:
    """Ascends the loss of the forget set (Golatkar et al. 2020; Thudi et al. 2022)."""
    forget = batches(problem.arrays, problem.forget, batch_size, even=True)
    objective = weighted_sum({"forget": (-1.0, supervised(model))})
    n_steps, optimizer = epochs * forget.steps_per_epoch, optimizers.sgd(**sgd)
    return descend(objective, optimizer, params, stats, Joined({"forget": forget}), key, n_steps)


def ascent_descent(
    model: Model,
    params: Tree,
    stats: Tree,
    problem: Problem,
    key,
    *,
    steps,
    batch_size,
    forget_weight,
    **sgd,
) -> Unlearned:
    """Descends the retain loss and ascends the forget loss in the same step (GradDiff).

    The objective is retain loss - forget_weight * forget loss, on a batch of each.
    """
    source = Joined(
        {
            "retain": batches(problem.arrays, problem.retain, batch_size),
            "forget": batches(problem.arrays, problem.forget, batch_size, even=True),
        }
    )
    loss = supervised(model)
    objective = weighted_sum({"retain": (1.0, loss), "forget": (-forget_weight, loss)})
    return descend(objective, optimizers.sgd(**sgd), params, stats, source, key, steps)


def random_labels(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, *, epochs, batch_size, **sgd
) -> Unlearned:
    """Trains on with a wrong label for every forget example (Graves et al. 2021).

    Each forget example gets one label, uniform over the other classes and drawn once; epochs pass
    over the whole training set with these labels.
    """
    shift = jax.random.randint(keys.fold(key, "labels"), problem.forget.shape, 1, problem.n_classes)
    wrong = (problem.y[problem.forget] + shift) % problem.n_classes
    arrays = problem.arrays | {"y": problem.y.at[problem.forget].set(wrong.astype(problem.y.dtype))}
    source = batches(arrays, jnp.concatenate([problem.retain, problem.forget]), batch_size)
    n_steps, optimizer = epochs * source.steps_per_epoch, optimizers.sgd(**sgd)
    return descend(supervised(model), optimizer, params, stats, source, key, n_steps)
