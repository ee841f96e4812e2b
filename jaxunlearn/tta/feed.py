"""A stream as the steps read it: which images make up each batch, and what happens before it."""

import dataclasses
from typing import Any

import jax

from jaxunlearn.core.keys import Key
from jaxunlearn.core.pixels import as_float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Feed:
    """A source of batches for `core.loop`, from images on the device and tables of their rows.

    Attributes:
        images: [N, H, W, C], uint8 or floats in [0, 1].
        tables: leading axis T, the batches: `rows`, int [T, B]; where needed `valid`, bool [T, B],
            the rows that count; `reset`, bool [T], whether the method starts anew before it; and
            of windows `newest`, int [T], the row that is predicted, and `update`, bool [T].
        first: number of the step that reads batch 0.
    """

    images: jax.Array
    tables: dict[str, jax.Array]
    first: int = dataclasses.field(metadata={"static": True})

    def plan(self, key: Key, steps: jax.Array) -> dict[str, jax.Array]:
        """The tables' rows of consecutive steps."""
        del key
        return jax.tree.map(lambda table: table[steps - self.first], self.tables)

    def gather(self, row: dict[str, jax.Array], key: Key) -> dict[str, Any]:
        """The batch of one step."""
        del key
        return row | {"x": as_float(self.images[row["rows"]])}
