"""What the entries of a store's ledger say: which examples are gone, which orders are trained."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.exact.files import Files
from jaxunlearn.exact.ledger import Entry


class Generation(NamedTuple):
    """The last training of an order.

    Attributes:
        number: its number, from 0.
        seen: number of the last entry that it knew; later deletions count against it.
        sha256: hash of its file.
    """

    number: int
    seen: int
    sha256: str


class State:
    """The sum of all entries taken so far.

    Attributes:
        deleted: number of the entry that deleted an example, by id.
        trained: last generation of every order that was trained, by (shard, order).
    """

    def __init__(self, files: Files):
        self._files = files
        self.deleted: dict[str, int] = {}
        self.trained: dict[tuple[int, int], Generation] = {}
        n_places = files.plan.n_shards * files.plan.n_slices
        self._held = np.bincount(files.places, minlength=n_places)  # examples not deleted, by place
        self._hit = np.full(n_places, -1)  # the last entry that deleted from a place
        self._taken = 0

    def take(self, entries: Sequence[Entry]) -> None:
        """Takes those entries of a ledger that it has not taken yet."""
        for entry in entries[self._taken :]:
            if entry.what == "delete":
                for name in entry.data["ids"]:
                    self._delete(name, entry.number)
            elif entry.what in ("train", "repair"):
                for order in entry.data["orders"]:
                    self.trained[order["shard"], order["order"]] = Generation(
                        order["generation"], entry.data["seen"], order["sha256"]
                    )
        self._taken = len(entries)

    def _delete(self, name: str, number: int) -> None:
        place = self._files.place(name)
        self._held[place] -= name not in self.deleted
        self.deleted.setdefault(name, number)
        self._hit[place] = number

    def whole(self) -> np.ndarray:
        """Stages of every order that no deletion reached since they were trained, int [m, B].

        0 where an order has never been trained.
        """
        plan = self._files.plan
        hit = self._hit.reshape(plan.n_shards, plan.n_slices)
        left = np.zeros((plan.n_shards, plan.budget), np.int64)
        for (shard, order), generation in self.trained.items():
            gone = hit[shard, list(plan.orders[shard][order])] > generation.seen
            left[shard, order] = gone.argmax() if gone.any() else plan.n_slices
        return left

    def surviving(self) -> np.ndarray:
        """Stages that can be served, int [m, B]: `whole`, or 0 if they have read no example."""
        left, plan = self.whole(), self._files.plan
        held = self._held.reshape(plan.n_shards, plan.n_slices)
        for shard, order in np.ndindex(left.shape):
            read = plan.orders[shard][order][: left[shard, order]]
            if not held[shard, list(read)].any():
                left[shard, order] = 0
        return left

    @property
    def empty_slices(self) -> int:
        """How many slices hold no example, or none any more."""
        return int((self._held == 0).sum())
