"""What an unlearning method is given, and what it gives back."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxunlearn.core.tree import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """A training set and the part of it that is to be forgotten.

    Attributes:
        x: training inputs, [n, ...].
        y: training labels, int [n].
        retain: rows that stay, int [r].
        forget: rows that go, int [f]; with `retain` all rows, each once.
        n_classes: number of classes.
    """

    x: Any
    y: Any
    retain: Any
    forget: Any
    n_classes: int = dataclasses.field(metadata={"static": True})

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """The training set as the arrays that batches are gathered from."""
        return {"x": self.x, "y": self.y}


class Unlearned(NamedTuple):
    """What a method returns for one model.

    Attributes:
        params: the parameters afterwards.
        stats: the statistics afterwards.
        losses: the loss of every step, [n_steps]; not finite means that the method failed.
        n_gradients: training examples whose gradient was computed, with repetitions, [].
    """

    params: Tree
    stats: Tree
    losses: jax.Array
    n_gradients: int | jax.Array
