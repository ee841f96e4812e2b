"""What optax lacks: optimizers as PyTorch and Keras have them, and schedules that papers use."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.tree import Tree


def triangular(peak: float | jax.Array, n_steps: int, peak_at: float = 0.2) -> optax.Schedule:
    """Linear from 0 up to `peak` and back to 0 at `n_steps`.

    Args:
        peak: the largest value.
        n_steps: length; the value is 0 from there on.
        peak_at: position of the peak, as a fraction of the length.
    """
    turn = max(1, round(peak_at * n_steps))
    # Starting one step in, so that no step of a run has learning rate 0.
    up = optax.schedules.linear_schedule(peak / (turn + 1), peak, turn)
    down = optax.schedules.linear_schedule(peak, 0.0, max(1, n_steps - turn))
    return optax.schedules.join_schedules([up, down], [turn])


def warmup_stable_decay(
    peak: float | jax.Array,
    n_steps: int,
    *,
    warmup: float = 0.02,
    decay: float = 0.02,
    floor: float = 0.1,
) -> optax.Schedule:
    """Linear from 0 up to `peak`, constant, then linear down to `floor * peak` at `n_steps`.

    As in the code of arXiv 2510.16629: with a warm-up the first update has learning rate 0.

    Args:
        peak: the constant value.
        n_steps: length.
        warmup: fraction of the length that goes up, rounded down to whole steps.
        decay: fraction that goes down, likewise.
        floor: last value, relative to `peak`.
    """
    up, down = int(warmup * n_steps), int(decay * n_steps)
    parts = [optax.schedules.constant_schedule(peak)]
    boundaries = []
    if up:
        parts.insert(0, optax.schedules.linear_schedule(0.0, peak, up))
        boundaries.append(up)
    if down:
        parts.append(optax.schedules.linear_schedule(peak, floor * peak, down))
        boundaries.append(n_steps - down)
    return optax.schedules.join_schedules(parts, boundaries)


def sgd(
    learning_rate: float | jax.Array | optax.Schedule,
    momentum: float | jax.Array = 0.9,
    weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformation:
    """SGD as PyTorch's: weight decay is added to the gradient *before* the momentum (coupled)."""
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum=momentum))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NadamState:
    """State of `keras_nadam`: steps taken, product of all momenta so far, and both moments."""

    count: jax.Array
    product: jax.Array
    mu: Tree
    nu: Tree


def keras_nadam(
    learning_rate: float | jax.Array | optax.Schedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-7,
) -> optax.GradientTransformation:
    """Nadam as in Keras 3, whose momentum warms up (Dozat 2016): u_t = b1 (1 - 0.96^t / 2).

    With U_t = u_1 ... u_t, and m and v as in Adam, step t = 1, 2, ... adds

        -lr (u_{t+1} m / (1 - U_t u_{t+1}) + (1 - u_t) g / (1 - U_t)) / (sqrt(v / (1 - b2^t)) + eps)

    to the parameters. `optax.nadam` has a constant b1 and another eps. A schedule gets the number
    of steps taken, as in Keras.
    """

    def init(params: Tree) -> Any:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))  # two, to be donated
        return NadamState(jnp.zeros((), jnp.int32), jnp.ones(()), mu, nu)

    def update(updates: Tree, state: Any, params: Any = None) -> tuple[Tree, Any]:
        del params
        grads = updates
        lr: Any = learning_rate(state.count) if callable(learning_rate) else learning_rate
        t = state.count + 1
        now, after = (b1 * (1 - 0.5 * 0.96**s) for s in (t, t + 1))
        product = state.product * now
        mean = lambda old, new, b: (old + (1 - b) * (new - old)).astype(old.dtype)  # noqa: E731
        mu = jax.tree.map(lambda m, g: mean(m, g, b1), state.mu, grads)
        nu = jax.tree.map(lambda v, g: mean(v, g * g, b2), state.nu, grads)
        of_m, of_g = after / (1 - product * after), (1 - now) / (1 - product)
        of_v = 1 / (1 - b2**t)

        def change(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return (-lr * (of_m * m + of_g * g) / (jnp.sqrt(of_v * v) + eps)).astype(g.dtype)

        return jax.tree.map(change, mu, nu, grads), NadamState(t, product, mu, nu)

    return optax.GradientTransformation(init, update)


def keras_sgd(
    learning_rate: float | jax.Array,
    momentum: float | jax.Array = 0.9,
    weight_decay: float | jax.Array = 0.0,
    *,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """SGD as in Keras 3: the decay is decoupled, and every trained parameter decays, biases too.

    w <- w - lr wd w; then v <- momentum v - lr g; and w <- w + momentum v - lr g with Nesterov's
    momentum, w + v without. `sgd` is PyTorch's, whose decay is part of the gradient.
    """

    def init(params: Tree) -> Tree:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: Tree, state: Any, params: Any = None) -> tuple[Tree, Tree]:
        if params is None:
            raise ValueError("params is None; update(grads, state, params) needs them to decay")
        grads = updates
        push = lambda v, g: (momentum * v - learning_rate * g).astype(v.dtype)  # noqa: E731
        velocity = jax.tree.map(push, state, grads)
        ahead = jax.tree.map(push, velocity, grads) if nesterov else velocity
        decay = learning_rate * weight_decay
        updates = jax.tree.map(lambda step, w: (step - decay * w).astype(w.dtype), ahead, params)
        return updates, velocity

    return optax.GradientTransformation(init, update)
