"""Shuffled batches of arrays on the device, indexed inside the compiled program."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Key, fold


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batches:
    """Epochs over some rows of arrays, a fresh shuffle each epoch, incomplete batches dropped.

    A source for `core.loop`: `plan` draws the permutations of a whole block of steps at once (a
    sort per step would dominate a small network), `gather` only indexes. Epoch e is shuffled with
    `fold(key, "epoch", e)`, so the rows of step t do not depend on where a block begins.

    Attributes:
        arrays: pytree of arrays with a common leading axis; never copied, shared by all models.
        indices: int [n], the rows that are used.
        batch_size: rows per step, at most n.
    """

    arrays: Any
    indices: jax.Array
    batch_size: int = dataclasses.field(metadata={"static": True})

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass."""
        return self.indices.shape[-1] // self.batch_size

    def plan(self, key: Key, steps: jax.Array) -> jax.Array:
        """Row numbers of consecutive steps, int [K, batch_size]."""
        length, per_epoch = steps.shape[0], self.steps_per_epoch
        # K consecutive steps touch at most this many epochs, wherever they begin.
        n_epochs = (length + per_epoch - 2) // per_epoch + 1
        epochs = steps[0] // per_epoch + jnp.arange(n_epochs)
        shuffle = lambda e: jax.random.permutation(fold(key, "epoch", e), self.indices)  # noqa: E731
        rows = jax.vmap(shuffle)(epochs)[:, : per_epoch * self.batch_size]
        rows = rows.reshape(n_epochs * per_epoch, self.batch_size)
        return jax.lax.dynamic_slice_in_dim(rows, steps[0] % per_epoch, length)

    def gather(self, row: jax.Array, key: Key) -> Any:
        """The batch of one step: rows of all arrays."""
        del key
        return jax.tree.map(lambda array: array[row], self.arrays)


def batches(arrays: Any, indices: Any, batch_size: int) -> Batches:
    """`Batches` with its arguments checked; a batch larger than the set becomes the whole set.

    Raises:
        ValueError: no indices, or a batch size below 1.
    """
    n = np.shape(indices)[0]
    if n < 1 or batch_size < 1:
        raise ValueError(f"batches: {n} indices and batch_size {batch_size}; both must be >= 1")
    return Batches(arrays, jnp.asarray(indices), min(batch_size, n))
