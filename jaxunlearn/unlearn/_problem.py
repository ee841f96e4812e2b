"""What an unlearning method is given, and what it gives back."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.tree import Tree
from jaxunlearn.data import Dataset
from jaxunlearn.data.forget_sets import check


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
        effect: what training on the forget set adds to each logit of each point, as datamodels
            estimate it, [n or more, n_classes], training points first; None if no method needs it.
        oracle_logits: mean logits of retrained models that are used as targets, like `effect`.
    """

    x: Any
    y: Any
    retain: Any
    forget: Any
    n_classes: int = dataclasses.field(metadata={"static": True})
    effect: Any = None
    oracle_logits: Any = None

    @classmethod
    def of(cls, dataset: Dataset, forget: np.ndarray) -> "Problem":
        """The training set of a data set without some of its rows, as arrays on the device.

        Args:
            dataset: its train part is used.
            forget: indices to forget, see `data.forget_sets`.

        Raises:
            ValueError: an index out of range, a duplicate, none, or all of them.
        """
        n = len(dataset.x_train)
        forget = check(forget, n)
        retain = np.setdiff1d(np.arange(n), forget)
        arrays = (dataset.x_train, dataset.y_train, retain, forget)
        return cls(*(jnp.asarray(array) for array in arrays), n_classes=dataset.n_classes)

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
        correction: what is added to the logits of the training points and then the validation
            points, [n + m, n_classes], by a method that changes outputs and not weights.
    """

    params: Tree
    stats: Tree
    losses: jax.Array
    n_gradients: int | jax.Array
    correction: jax.Array | None = None
