"""SCRUB: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import loop, losses, optimizers
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.step import alternate, gradient_step, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import batches, interleaved
from jaxunlearn.unlearn._problem import Problem, Unlearned


def scrub(
    model: Model,
    params: Tree,
    stats: Tree,
    problem: Problem,
    key,
    *,
    epochs,
    ascent_epochs,
    retain_batch,
    forget_batch,
    learning_rate,
    decay_at,
    momentum,
    weight_decay,
    temperature,
    alpha,
    gamma,
) -> Unlearned:
    """Pushes a student away from its teacher on the forget set and keeps it close on the rest.

    The teacher is the model itself, in eval mode, and its logits are computed once; the student
    runs in train mode. Forget steps ascend KL(teacher || student), retain steps descend
    gamma * cross-entropy + alpha * KL, both with the same optimizer (one momentum) on the student.
    """
    teacher = predict(model, params, stats, problem.x)
    arrays = problem.arrays | {"teacher": teacher}
    forget = batches(arrays, problem.forget, forget_batch, even=True)
    retain = batches(arrays, problem.retain, retain_batch)
    is_forget, epoch = _schedule(
        epochs, min(ascent_epochs, epochs), forget.steps_per_epoch, retain.steps_per_epoch
    )
    drops = np.searchsorted(epoch, np.asarray(decay_at, int))
    optimizer = optimizers.sgd(
        lambda step: (
            learning_rate
            * optax.piecewise_constant_schedule(
                1.0, {int(at): 0.1 for at in drops if at < len(epoch)}
            )(step)
        ),
        momentum,
        weight_decay,
    )

    def divergence(logits, batch):
        return jnp.mean(losses.kl_divergence(logits, batch["teacher"], temperature))

    def push(params, stats, shared, batch, key):
        logits, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        return -divergence(logits, batch), (stats, {})

    def keep(params, stats, shared, batch, key):
        logits, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        own = jnp.mean(losses.cross_entropy(logits, batch["y"]))
        return gamma * own + alpha * divergence(logits, batch), (stats, {})

    retain_step = gradient_step(keep, optimizer)
    if is_forget.any():
        flags = jnp.asarray(is_forget)  # of the settings, not of the data
        forget_step = gradient_step(push, optimizer)
        step = alternate(forget_step, retain_step, lambda t: flags[t])
        source = interleaved(forget, retain, is_forget)
    else:
        step, source = retain_step, retain
    state, metrics = loop.scan(
        step, init_state(params, optimizer, stats), None, source, key, len(is_forget)
    )
    n_gradients = int(np.where(is_forget, forget.batch_size, retain.batch_size).sum())
    return Unlearned(state.params, state.stats, metrics["loss"], n_gradients)


def _schedule(epochs, ascent_epochs, forget_steps, retain_steps) -> tuple[np.ndarray, np.ndarray]:
    """Which steps are forget steps, bool [n_steps], and the epoch of each, int [n_steps]."""
    is_forget, epoch = [], []
    for e in range(epochs):
        pushes = forget_steps if e < ascent_epochs else 0
        is_forget += [True] * pushes + [False] * retain_steps
        epoch += [e] * (pushes + retain_steps)
    return np.array(is_forget, bool), np.array(epoch, int)
