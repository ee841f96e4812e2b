"""The loop of the methods that follow the gradient of one objective."""

import jax
import optax

from jaxunlearn.core import loop
from jaxunlearn.core.step import Objective, gradient_step, init_state
from jaxunlearn.core.tree import Tree
from jaxunlearn.unlearn._problem import Unlearned


def descend(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Tree,
    stats: Tree,
    source,
    key: jax.Array,
    n_steps: int,
) -> Unlearned:
    """Follows an objective's gradient for some steps over a source of batches."""
    state, metrics = loop.scan(
        gradient_step(objective, optimizer),
        init_state(params, optimizer, stats),
        None,
        source,
        key,
        n_steps,
    )
    per_step = sum(s.batch_size for s in getattr(source, "sources", {"": source}).values())
    return Unlearned(state.params, state.stats, metrics["loss"], n_steps * per_step)
