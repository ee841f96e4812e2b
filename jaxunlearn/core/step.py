"""One step: an objective and an optimizer become `step(state, shared, batch, key)`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree

Metrics: TypeAlias = dict[str, jax.Array]
# objective(params, stats, shared, batch, key) -> (loss [], (stats, metrics))
Objective: TypeAlias = Callable[[Tree, Tree, Any, Any, Key], tuple[jax.Array, tuple[Tree, Metrics]]]
# step(state, shared, batch, key) -> (state, metrics)
Step: TypeAlias = Callable[[Any, Any, Any, Key], tuple[Any, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training changes.

    Attributes:
        params: the trainable part; holes (`None`) where a leaf is frozen.
        opt_state: the optimizer's state, for the trainable part only.
        stats: BatchNorm statistics and the like.
        step: number of steps taken, int32 [].
        extra: whatever a wrapper keeps, by name (such as `ema`).
    """

    params: Tree
    opt_state: Any
    stats: Tree
    step: jax.Array
    extra: dict[str, Any]


def init_state(
    params: Tree, optimizer: optax.GradientTransformation, stats: Tree | None = None
) -> TrainState:
    """A state at step 0 with a fresh optimizer state."""
    # A Python int would be weakly typed at the first call and cost a second compilation.
    return TrainState(params, optimizer.init(params), stats or {}, jnp.zeros((), jnp.int32), {})


def gradient_step(objective: Objective, optimizer: optax.GradientTransformation) -> Step:
    """A step on a `TrainState` that follows the gradient of the objective.

    Returns:
        A step whose metrics are the objective's and `loss`, both at the parameters *before* the
        update.
    """

    def step(state: TrainState, shared: Any, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, (stats, metrics)), grads = grad(state.params, state.stats, shared, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, stats=stats, step=state.step + 1
        )
        return state, {"loss": loss, **metrics}

    return step


@functools.cache
def supervised(model: Model, loss: Callable[..., jax.Array] = cross_entropy) -> Objective:
    """Mean loss of a model in train mode on batches `{"x": inputs, "y": targets}`.

    Args:
        model: applied as `model.apply(params, stats, x, train=True, key=key)`.
        loss: `loss(outputs, y) -> [B]`.
    """

    def objective(params, stats, shared, batch, key):
        del shared
        outputs, stats = model.apply(params, stats, batch["x"], train=True, key=key)
        return jnp.mean(loss(outputs, batch["y"])), (stats, {})

    return objective


@functools.cache
def with_frozen(objective: Objective) -> Objective:
    """Lets an objective see all parameters while only some of them train.

    The trainable part arrives as `params`, with holes; the frozen rest is `shared["frozen"]`, and
    the wrapped objective gets both combined and `shared["shared"]`.
    """

    def wrapped(params, stats, shared, batch, key):
        return objective(
            tree.combine(params, shared["frozen"]), stats, shared["shared"], batch, key
        )

    return wrapped


@functools.cache
def accumulated(objective: Objective, size: int) -> Objective:
    """Gradient accumulation: the same objective, computed for a part of the batch at a time.

    Activations of one part are alive at once: less memory, and a CPU's cache may hold them. The
    value and gradient are those of the whole batch up to rounding, if the objective is a mean over
    examples that do not see each other (no BatchNorm in train mode). Part i draws from
    `fold(key, i)`, metrics are averaged likewise, and statistics are threaded through the parts.
    Differentiate it once only: its second derivatives are 0.

    Args:
        objective: on batches whose leaves all have the batch as first axis.
        size: examples of a part; the last one may have fewer.
    """

    def wrapped(params, stats, shared, batch, key):
        n = len(jax.tree.leaves(batch)[0])
        n_parts, rest = divmod(n, size)
        if n <= size:
            return objective(params, stats, shared, batch, key)
        fixed = jax.lax.stop_gradient(params)
        grad = jax.value_and_grad(objective, has_aux=True)

        def of_part(stats, i, part):
            (loss, (stats, metrics)), grads = grad(fixed, stats, shared, part, fold(key, i))
            return (loss, metrics, grads), stats

        def add(carry, i_and_part):
            sums, stats = carry
            part, stats = of_part(stats, *i_and_part)
            return (jax.tree.map(jnp.add, sums, part), stats), None

        cut = n_parts * size
        parts = jax.tree.map(lambda x: x[:cut].reshape(n_parts, size, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes, _ = jax.eval_shape(of_part, stats, jnp.array(0), first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (sums, stats), _ = jax.lax.scan(add, (zeros, stats), (jnp.arange(n_parts), parts))
        means = jax.tree.map(lambda x: x * (size / n), sums)
        if rest:
            last, stats = of_part(stats, n_parts, jax.tree.map(lambda x: x[cut:], batch))
            means = jax.tree.map(lambda mean, x: mean + x * (rest / n), means, last)
        loss, metrics, grads = means
        # Linear in params around where they are: this value, and these gradients.
        slopes = jax.tree.map(lambda g, p, at: jnp.sum(g * (p - at)), grads, params, fixed)
        return jax.tree.reduce(jnp.add, slopes, loss), (stats, metrics)

    return wrapped


def weighted_sum(terms: Mapping[str, tuple[float | jax.Array, Objective]]) -> Objective:
    """The weighted sum of named objectives, as one objective.

    - The batch is a dict by the same names; each objective sees its own entry.
    - Each objective gets the key folded by its name: adding a term changes no other's randomness.
    - `stats` are threaded through the objectives in the given order.
    - Metrics are prefixed, `name/metric`, and `name/loss` is the unweighted value.

    Args:
        terms: `{name: (weight, objective)}`; a negative weight makes an objective ascend.
    """
    if not terms:
        raise ValueError("weighted_sum: terms is empty; at least one objective is needed")

    def objective(params, stats, shared, batch, key):
        total, metrics = jnp.zeros(()), {}
        for name, (weight, term) in terms.items():
            loss, (stats, of_term) = term(params, stats, shared, batch[name], fold(key, name))
            total = total + weight * loss
            metrics |= {f"{name}/{metric}": value for metric, value in of_term.items()}
            metrics[f"{name}/loss"] = loss
        return total, (stats, metrics)

    return objective


def alternate(first: Step, second: Step, schedule: Callable[[jax.Array], jax.Array]) -> Step:
    """Takes the first or the second step, as the schedule says; both share one state.

    Only the step that is taken is computed, as long as `state.step` is not batched by a `vmap`
    (create the state inside the mapped function).

    Args:
        first: taken where the schedule is true; sees `batch["first"]`.
        second: taken elsewhere; sees `batch["second"]`.
        schedule: `schedule(state.step) -> bool []`.

    Returns:
        A step over batches `{"first": .., "second": ..}` with the metric `loss` of the step taken.
    """

    def step(state: TrainState, shared: Any, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        def take(chosen: Step, name: str):
            def branch(state):
                state, metrics = chosen(state, shared, batch[name], fold(key, name))
                return state, {"loss": metrics["loss"]}

            return branch

        return jax.lax.cond(
            schedule(state.step), take(first, "first"), take(second, "second"), state
        )

    return step
