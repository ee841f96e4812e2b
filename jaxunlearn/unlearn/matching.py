"""Matching: fine-tune towards the outputs that a retrained model would give.

Source: Datamodel Matching (arXiv 2410.23232), with the settings of the authors' code. The targets
are logits on the forget set and on a fixed sample of the retain set; labels are never used.

- Oracle Matching takes them from retrained models: a skyline, since those are what unlearning is to
  spare.
- Datamodel Matching (DMM) predicts them: the model's own logits minus the effect of the forget set
  that datamodels (or TRAK) attribute to it.
- DM-Direct uses the prediction itself: no weights change, and it answers only for known points.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import keys, loop, losses
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.step import Objective, gradient_step, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn._problem import Problem, Unlearned
from jaxunlearn.unlearn.method_settings import DatamodelDirect as DatamodelDirect
from jaxunlearn.unlearn.method_settings import DatamodelMatching as DatamodelMatching
from jaxunlearn.unlearn.method_settings import Loss as Loss
from jaxunlearn.unlearn.method_settings import OracleMatching

RETAIN_SEED = 42  # as in the authors' code: the same retain sample for every model


def oracle_matching(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, **settings
) -> Unlearned:
    """Matches the mean logits of retrained models, `problem.oracle_logits`.

    Its settings are those of `OracleMatching`. The oracles must not be those that judge the result.
    """
    logits = _given(problem.oracle_logits, "oracle_matching", "oracle_logits")

    def targets(rows):
        return logits[rows]

    return _match(model, params, stats, problem, key, targets, **settings)


def datamodel_matching(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, *, multiplier, **settings
) -> Unlearned:
    """Matches each model's own logits minus tau times the forget set's effect, `problem.effect`.

    Its settings are those of `DatamodelMatching`. The targets are computed once, in eval mode; the
    model that learns them runs in train mode.
    """
    effect = _given(problem.effect, "datamodel_matching", "effect")

    def targets(rows):
        return predict(model, params, stats, problem.x[rows]) - multiplier * effect[rows]

    return _match(model, params, stats, problem, key, targets, **settings)


def datamodel_direct(
    model: Model, params: Tree, stats: Tree, problem: Problem, key, *, multiplier
) -> Unlearned:
    """Changes no weights: subtracts tau times the effect of the forget set from the outputs."""
    del model, key
    effect = _given(problem.effect, "datamodel_direct", "effect")
    return Unlearned(params, stats, jnp.zeros(0), 0, correction=-multiplier * effect)


def check_sample(settings: OracleMatching, n_forget: int, n_retain: int, name: str) -> None:
    """Raises a ValueError that names the setting that takes more points than there are.

    Args:
        settings: settings of Oracle Matching or DMM.
        n_forget: size of the forget set.
        n_retain: size of the retain set.
        name: the method's name, for the message.
    """
    if settings.loss not in _LOSSES:
        raise ValueError(f"{name}.loss is {settings.loss!r}; it must be {', '.join(_LOSSES)}")
    multipliers = (settings.forget_multiplier, settings.retain_multiplier)
    _sample_sizes(*multipliers, n_forget, n_retain, name)


def _sample_sizes(
    forget_multiplier: float, retain_multiplier: float, n_forget: int, n_retain: int, name: str
) -> tuple[int, int]:
    """How many points of the forget set, with repetitions, and of the retain set are matched."""
    sizes = int(forget_multiplier * n_forget + 1e-9), int(retain_multiplier * n_forget + 1e-9)
    if sizes[1] > n_retain:
        raise ValueError(
            f"{name}.retain_multiplier is {retain_multiplier}: {sizes[1]} points for {n_forget} to "
            f"forget, but the retain set has {n_retain}"
        )
    if sum(sizes) == 0:
        raise ValueError(
            f"{name}.forget_multiplier is {forget_multiplier} and retain_multiplier "
            f"{retain_multiplier}; no point is left to match on"
        )
    return sizes


def _given(value, method: str, name: str):
    if value is None:
        raise ValueError(f"{method} needs problem.{name}, which is not given")
    return value


def _match(
    model: Model,
    params: Tree,
    stats: Tree,
    problem: Problem,
    key,
    targets: Callable[[jax.Array], jax.Array],
    *,
    forget_multiplier,
    retain_multiplier,
    **descent,
) -> Unlearned:
    """Matches `targets(rows)` on the forget set, repeated, and on a sample of the retain set."""
    if descent["loss"] not in _LOSSES:
        raise ValueError(f"loss is {descent['loss']!r}; it must be {', '.join(_LOSSES)}")
    forget = problem.forget
    n_copies, n_retain = _sample_sizes(
        forget_multiplier, retain_multiplier, len(forget), len(problem.retain), "matching"
    )
    retain = jax.random.permutation(jax.random.key(RETAIN_SEED), problem.retain)[:n_retain]
    rows = jnp.concatenate([forget, retain])
    arrays = {"x": problem.x[rows], "targets": jax.lax.stop_gradient(targets(rows))}
    # Positions in these arrays: the forget set as often as wanted, the retain sample once.
    sample = np.concatenate(
        [np.resize(np.arange(len(forget)), n_copies), len(forget) + np.arange(n_retain)]
    )
    return _descend(model, params, stats, arrays, sample, key, **descent)


def _descend(
    model: Model,
    params: Tree,
    stats: Tree,
    arrays: dict[str, jax.Array],
    sample: np.ndarray,
    key,
    *,
    epochs,
    batch_size,
    learning_rate,
    decay,
    proximity,
    loss,
) -> Unlearned:
    """Epochs of Adam over a sample of rows of arrays; an epoch's last batch may be smaller."""
    objective = _distance(model, loss, proximity)
    n_full = len(sample) // batch_size * batch_size

    def epoch(state, number):
        epoch_key = keys.fold(key, "epoch", number)
        order = jax.random.permutation(keys.fold(epoch_key, "order"), jnp.asarray(sample))
        optimizer = optax.adam(learning_rate * decay ** (number + (loss == "kd")))
        if loss == "kd":
            state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
        step, values = gradient_step(objective, optimizer), []
        for name, rows in (
            ("full", order[:n_full].reshape(-1, batch_size)),
            ("rest", order[None, n_full:]),
        ):
            if rows.size:
                source = jax.tree_util.Partial(_batch, arrays, rows)
                part_key = keys.fold(epoch_key, name)
                state, metrics = loop.scan(step, state, params, source, part_key, len(rows))
                values.append(metrics["loss"])
        return state, jnp.concatenate(values)

    state = init_state(params, optax.adam(learning_rate), stats)
    state, values = jax.lax.scan(epoch, state, jnp.arange(epochs))
    return Unlearned(state.params, state.stats, values.reshape(-1), epochs * len(sample))


def _batch(arrays: dict[str, jax.Array], rows: jax.Array, key, step) -> dict[str, jax.Array]:
    del key
    return jax.tree.map(lambda array: array[rows[step]], arrays)


def _distance(model: Model, loss: Loss, proximity) -> Objective:
    """Distance to the targets and, weighted, to the first parameters, which are `shared`."""

    def objective(params, stats, shared, batch, key):
        logits, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        value = jnp.mean(_LOSSES[loss](logits, batch["targets"]))
        return value + proximity * _squared_distance(params, shared), (stats, {})

    return objective


def _squared_distance(params: Tree, others: Tree) -> jax.Array:
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, others)
    return sum(jax.tree.leaves(squares), jnp.zeros(()))


def _distillation(logits: jax.Array, targets: jax.Array) -> jax.Array:
    hard = losses.cross_entropy(logits, targets.argmax(-1))
    return 0.25 * losses.kl_divergence(logits, targets, 2.0) + 0.75 * hard


_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": losses.squared_error,
    "ce": lambda logits, targets: optax.losses.softmax_cross_entropy(
        logits, jax.nn.softmax(targets)
    ),
    "kd": _distillation,
}
