"""What optax lacks: PyTorch's SGD with coupled weight decay, and schedules that papers use."""

import jax
import optax


def triangular(peak: float | jax.Array, n_steps: int, peak_at: float = 0.2) -> optax.Schedule:
    """Linear from 0 up to `peak` and back to 0 at `n_steps`.

    Args:
        peak: the largest value.
        n_steps: length; the value is 0 from there on.
        peak_at: where the peak lies, as a fraction of the length.
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

    As in the code of arXiv 2510.16629: with any warm-up the first update has learning rate 0.

    Args:
        peak: the constant value.
        n_steps: length.
        warmup: part of the length that goes up, rounded down to whole steps.
        decay: part that goes down, rounded down.
        floor: of the last value, relative to `peak`.
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
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum),
    )
