"""The source as it is replayed: reshuffled epochs of labelled batches, the last one shorter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.pixels import as_float
from jaxunlearn.tta.deployment import Samples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replay:
    """A source of batches for `core.loop`: `{"x", "y"}`, and `valid` if the last one is shorter.

    Epoch e is shuffled with `fold(key, "epoch", e)`; step t reads batch t mod L of epoch t // L.

    Attributes:
        samples: labelled images; uint8 is scaled to [0, 1] when it is read.
        batch_size: images of a batch, at most all of them.
    """

    samples: Samples
    batch_size: int = dataclasses.field(metadata={"static": True})

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass."""
        return -(-len(self.samples.y) // self.batch_size)

    def plan(self, key: Key, steps: jax.Array) -> dict[str, jax.Array]:
        """Rows of consecutive steps, int [K, B], and which of them count."""
        n, length, per_epoch = len(self.samples.y), steps.shape[0], self.steps_per_epoch
        n_epochs = (length + per_epoch - 2) // per_epoch + 1
        missing = per_epoch * self.batch_size - n

        def epoch(e: jax.Array) -> jax.Array:
            order = jax.random.permutation(fold(key, "epoch", e), n)
            return jnp.pad(order, (0, missing), constant_values=-1)

        rows = jax.vmap(epoch)(steps[0] // per_epoch + jnp.arange(n_epochs))
        rows = rows.reshape(-1, self.batch_size)
        rows = jax.lax.dynamic_slice_in_dim(rows, steps[0] % per_epoch, length)
        return {"rows": rows} if not missing else {"rows": rows, "valid": rows >= 0}

    def gather(self, row: dict[str, jax.Array], key: Key) -> dict[str, Any]:
        """The batch of one step."""
        del key
        rows = jnp.maximum(row["rows"], 0)
        batch = {"x": as_float(self.samples.x[rows]), "y": self.samples.y[rows]}
        return batch | {name: row[name] for name in row if name == "valid"}


def replayed(samples: Samples, batch_size: int) -> Replay:
    """Batches of some samples; a batch that is larger than their number becomes all of them."""
    return Replay(samples, min(batch_size, len(samples.y)))
