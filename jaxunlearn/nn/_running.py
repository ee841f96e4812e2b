"""Parts of a stack of layers."""

import jax

from jaxunlearn.core.tree import Tree


def running(layers: Tree, n_layers: int, start_at: int, stop_at: int) -> Tree:
    """The layers that run, of a stack of all of them, or of those that run.

    Raises:
        ValueError: neither of them is what the stack holds.
    """
    found = jax.tree.leaves(layers)[0].shape[0]
    if found == n_layers:
        return jax.tree.map(lambda leaf: leaf[start_at:stop_at], layers)
    if found != stop_at - start_at:
        raise ValueError(
            f"params hold {found} layers; all {n_layers} are needed, or those from {start_at} to "
            f"{stop_at}"
        )
    return layers
