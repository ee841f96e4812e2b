"""SCRUB: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import loop, losses, optimizers
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.step import Objective, alternate, gradient_step, init_state
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
    arrays = problem.arrays | {"teacher": predict(model, params, stats, problem.x)}
    forget = batches(arrays, problem.forget, forget_batch, even=True)
    retain = batches(arrays, problem.retain, retain_batch)
    plan = _Plan(epochs, min(ascent_epochs, epochs), forget.steps_per_epoch, retain.steps_per_epoch)
    schedule = _step_decay(learning_rate, [plan.first_step(e) for e in decay_at if e < epochs])
    optimizer = optimizers.sgd(schedule, momentum, weight_decay)
    step = gradient_step(_keep(model, temperature, alpha, gamma), optimizer)
    source = retain
    if plan.n_forget:
        step = alternate(gradient_step(_push(model, temperature), optimizer), step, plan.is_forget)
        source = interleaved(forget, retain, plan.is_forget(np.arange(plan.n_steps)))
    state, metrics = loop.scan(
        step, init_state(params, optimizer, stats), None, source, key, plan.n_steps
    )
    n_gradients = plan.n_forget * forget.batch_size
    n_gradients += (plan.n_steps - plan.n_forget) * retain.batch_size
    return Unlearned(state.params, state.stats, metrics["loss"], n_gradients)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which step does what: the first `ascent_epochs` epochs begin with their forget steps."""

    epochs: int
    ascent_epochs: int
    forget_steps: int  # of an epoch
    retain_steps: int

    @property
    def n_forget(self) -> int:
        return self.ascent_epochs * self.forget_steps

    @property
    def n_steps(self) -> int:
        return self.n_forget + self.epochs * self.retain_steps

    def first_step(self, epoch: int) -> int:
        return min(epoch, self.ascent_epochs) * self.forget_steps + epoch * self.retain_steps

    def is_forget(self, step):
        """Whether a step is a forget step; of integers, arrays or traced numbers."""
        length = self.forget_steps + self.retain_steps
        return (step < self.ascent_epochs * length) & (step % length < self.forget_steps)


def _step_decay(learning_rate, drops: list[int]) -> optax.Schedule:
    factor = optax.piecewise_constant_schedule(1.0, dict.fromkeys(drops, 0.1))
    return lambda step: learning_rate * factor(step)


def _divergence(logits, batch, temperature):
    return jnp.mean(losses.kl_divergence(logits, batch["teacher"], temperature))


def _push(model: Model, temperature) -> Objective:
    def objective(params, stats, shared, batch, key):
        del shared
        logits, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        return -_divergence(logits, batch, temperature), (stats, {})

    return objective


def _keep(model: Model, temperature, alpha, gamma) -> Objective:
    def objective(params, stats, shared, batch, key):
        del shared
        logits, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        supervised = jnp.mean(losses.cross_entropy(logits, batch["y"]))
        loss = gamma * supervised + alpha * _divergence(logits, batch, temperature)
        return loss, (stats, {})

    return objective
