"""Shuffled batches of arrays on the device, indexed inside the compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.core import checks
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
        indices: int [n], the rows that are used; -1 is none.
        batch_size: rows per step, at most n.
        least: static, how many of the indices are rows at least; None if all are.
        transform: static, `(batch, key) -> batch`, applied to every batch (conversion from uint8,
            augmentation); None leaves it as it is.
    """

    arrays: Any
    indices: jax.Array
    batch_size: int = dataclasses.field(metadata={"static": True})
    least: int | None = dataclasses.field(default=None, metadata={"static": True})
    transform: Callable[[Any, Key], Any] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass."""
        return (self.least or self.indices.shape[-1]) // self.batch_size

    def plan(self, key: Key, steps: jax.Array) -> jax.Array:
        """Row numbers of consecutive steps, int [K, batch_size]."""
        length, per_epoch = steps.shape[0], self.steps_per_epoch
        # K consecutive steps touch at most this many epochs, wherever they begin.
        n_epochs = (length + per_epoch - 2) // per_epoch + 1
        epochs = steps[0] // per_epoch + jnp.arange(n_epochs)
        rows = jax.vmap(lambda e: self._shuffled(fold(key, "epoch", e)))(epochs)
        rows = rows[:, : per_epoch * self.batch_size].reshape(-1, self.batch_size)
        return jax.lax.dynamic_slice_in_dim(rows, steps[0] % per_epoch, length)

    def _shuffled(self, key: Key) -> jax.Array:
        if self.least is None:
            return jax.random.permutation(key, self.indices)
        order = jnp.where(self.indices < 0, jnp.inf, jax.random.uniform(key, self.indices.shape))
        return self.indices[jnp.argsort(order)]

    def gather(self, row: jax.Array, key: Key) -> Any:
        """The batch of one step: rows of all arrays, transformed with `key`."""
        batch = jax.tree.map(lambda array: array[row], self.arrays)
        return batch if self.transform is None else self.transform(batch, key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joined:
    """Several sources read side by side: the batch is a dict by their names.

    Attributes:
        sources: `{name: source}`; each draws from the key folded by its name.
    """

    sources: dict[str, Any]

    def plan(self, key: Key, steps: jax.Array) -> dict[str, Any]:
        """Each source's rows, by name."""
        return {name: source.plan(fold(key, name), steps) for name, source in self.sources.items()}

    def gather(self, row: dict[str, Any], key: Key) -> dict[str, Any]:
        """Each source's batch, by name."""
        return {
            name: source.gather(row[name], fold(key, name)) for name, source in self.sources.items()
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Two sources that advance in turn, for `step.alternate`: each moves only when it is used.

    The batch is `{"first": .., "second": ..}`, the next batch of each; see `interleaved`.

    Attributes:
        sources: the two sources, by these names.
        position: int [n_steps] by the same names, how often each was used before a step.
        used: static, how often each is used in all.
    """

    sources: dict[str, Any]
    position: dict[str, jax.Array]
    used: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def plan(self, key: Key, steps: jax.Array) -> dict[str, Any]:
        """The rows that each source would give at each step."""
        rows = {}
        for name, used in zip(("first", "second"), self.used, strict=True):
            position = self.position[name][steps]
            length = min(used, steps.shape[0])
            planned = self.sources[name].plan(fold(key, name), position[0] + jnp.arange(length))
            ahead = jnp.minimum(position - position[0], length - 1)
            rows[name] = jax.tree.map(lambda x, ahead=ahead: x[ahead], planned)
        return rows

    gather = Joined.gather


def interleaved(first: Any, second: Any, is_first: np.ndarray) -> Interleaved:
    """`first` gives the steps where `is_first`, bool [n_steps], is true, `second` the others.

    Raises:
        ValueError: there are none of one kind.
    """
    is_first = np.asarray(is_first, bool)
    n_first = int(is_first.sum())
    if n_first in (0, len(is_first)):
        raise ValueError("interleaved: is_first must have at least one step of each kind")
    before = np.cumsum(is_first) - is_first
    position = {"first": before, "second": np.arange(len(is_first)) - before}
    return Interleaved(
        {"first": first, "second": second},
        {name: jnp.asarray(p, jnp.int32) for name, p in position.items()},
        (n_first, len(is_first) - n_first),
    )


def batches(
    arrays: Any,
    indices: Any,
    batch_size: int,
    *,
    even: bool = False,
    least: int | None = None,
    transform: Callable[[Any, Key], Any] | None = None,
) -> Batches:
    """`Batches` with its arguments checked; a batch larger than the set becomes the whole set.

    Args:
        arrays: see `Batches`.
        indices: int [n], the rows that are used.
        batch_size: rows per step.
        even: whether to shrink the batch so that as many batches cover the set as evenly as they
            can (50 rows in batches of at most 30: 25 and 25, where otherwise 20 would be dropped).
        least: for tables of subsets of different sizes, whose rows end with -1
            (`attribution.masks.tables`): the size of the smallest. All take as many steps as that
            one; the rows that a larger one leaves out are others in every epoch.
        transform: `(batch, key) -> batch`, a hashable function; see `Batches`.

    Raises:
        ValueError: arrays of different lengths, no indices, rows that are not there, or a batch
            size below 1.
    """
    shapes = [np.shape(array) for array in jax.tree.leaves(arrays)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"batches: arrays have lengths {shapes}; one leading axis is needed")
    if not isinstance(indices, jax.Array) or _is_here(indices):
        lowest = 0 if least is None else -1
        indices = checks.rows("batches: row", indices, shapes[0][0], lowest).astype(np.int32)
    n = np.shape(indices)[0] if least is None else checks.whole("batches: least", least)
    checks.whole("batches: batch_size", batch_size)
    if n < 1:
        raise ValueError("batches: indices is empty; at least one is needed")
    size = min(batch_size, n)
    return Batches(
        arrays, jnp.asarray(indices), n // -(-n // size) if even else size, least, transform
    )


def _is_here(array: jax.Array) -> bool:
    """Whether the values are known now, in this process."""
    return not isinstance(array, Tracer) and array.is_fully_addressable
