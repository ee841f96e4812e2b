"""A store as its files and ledger say it: what is there, what was deleted, and deleting; no JAX.

A deletion is an entry of the ledger: once it is on disk, no reader serves its slice any more, since
every `predict` looks at the ledger before each batch. Nothing is retrained, and no other file
changes. `service.Service` is a store that also answers, trains and proves.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.folders import check_own
from jaxunlearn.core.readers import reading
from jaxunlearn.exact import deletion
from jaxunlearn.exact.files import Files, check_id
from jaxunlearn.exact.ledger import Entry, Ledger

Answer = TypeVar("Answer")


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
            path = self._files.folder / "ledger.jsonl"
            with reading(f"{path} is damaged: entry {entry.number}", DamagedError):
                self._take(entry)
        self._taken = len(entries)

    def _take(self, entry: Entry) -> None:
        if entry.what == "delete":
            for name in entry.data["ids"]:
                self._delete(name, entry.number)
        elif entry.what in ("train", "repair"):
            seen = checks.whole("seen", entry.data["seen"], 0)
            bounds = {"shard": self._files.plan.n_shards, "order": self._files.plan.budget}
            for order in entry.data["orders"]:
                shard, number = (
                    checks.at_least(name, checks.whole(name, order[name], 0), 0, below)
                    for name, below in bounds.items()
                )
                generation = checks.whole("generation", order["generation"], 0)
                self.trained[shard, number] = Generation(generation, seen, order["sha256"])

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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        example: the id.
        shard: shard that holds it.
        slice: slice of the shard, which is given up.
        entry: number of the ledger's entry that says so.
        repeated: whether it had been deleted before.
    """

    example: str
    shard: int
    slice: int
    entry: int
    repeated: bool


class Store:
    """A store that is open; any number of processes may have it open.

    Attributes:
        folder: its folder.
        files: what never changes.
        ledger: what happened.
        state: what that comes to.
        plan: the plan.

    Raises:
        ValueError: there is no store, or a link in its folder.
        DamagedError: a file is not what the ledger says; it is named.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / "ledger.jsonl").exists():
            raise ValueError(f"folder is {str(folder)!r}, which holds no store")
        check_own(self.folder)
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        if not self.ledger.refresh():
            raise DamagedError(f"{self.ledger.path} is damaged: it has no whole entry")
        with reading(f"{self.ledger.path} is damaged: entry 0", DamagedError):
            digest = self.ledger.entries[0].data["plan"]
        self.files = Files(self.folder, digest)
        self.plan = self.files.plan
        self.state = State(self.files)
        self._take_new()

    def refresh(self) -> None:
        """Reads what other processes added to the ledger."""
        self.ledger.refresh()
        self._take_new()

    def _take_new(self) -> None:
        self.state.take(self.ledger.entries)

    def _current(self, call: Callable[[], Answer]) -> Answer:
        """What a call gives as the ledger is now."""
        while True:
            self.refresh()
            try:
                return call()
            except DamagedError:  # unless a repair has put other generations in their place
                if not self.ledger.refresh():
                    raise

    @property
    def deleted(self) -> dict[str, int]:
        """Number of the entry that deleted an example, by id."""
        return self.state.deleted

    def surviving(self) -> np.ndarray:
        """Stages left of every order, int [m, B]; see `State.surviving`."""
        return self.state.surviving()

    def status(self) -> dict[str, Any]:
        """What is there, JSON-like."""
        self.refresh()
        left = self.surviving()
        served = deletion.served(left)
        plan, reading = self.plan, (self.files.source or {}).get("reading", {})
        return {
            "shards": plan.n_shards,
            "slices": plan.n_slices,
            "budget": plan.budget,
            "examples": len(self.files.ids),
            "public": len(reading["public"]) if "public" in reading else None,
            "validation": reading.get("validation"),
            "deleted": len(self.deleted),
            "empty_slices": self.state.empty_slices,
            "entries": len(self.ledger.entries),
            "head": self.ledger.head,
            "stages_left": left.tolist(),
            "serves": {"order": served.order.tolist(), "depth": served.depth.tolist()},
            "living_shards": int((served.depth > 0).sum()),
            "needs_retraining": deletion.needs_retraining(left),
            "expected_requests_when_new": deletion.lifetime(plan.table).mean,
            "bytes": self.files.size(),
        }

    def needs_retraining(self, *, trigger: Literal["all", "any"] = "all", depth: int = 1) -> bool:
        """Whether it is time to train again; see `deletion.needs_retraining`.

        Raises:
            ValueError: a depth that no order has, or another trigger.
        """
        if depth > self.plan.n_slices:
            raise ValueError(f"depth is {depth}; orders have {self.plan.n_slices} stages")
        return deletion.needs_retraining(self.surviving(), trigger=trigger, depth=depth)

    def members(self, groups: Iterable[str]) -> list[str]:
        """The ids of all examples of some groups.

        Raises:
            ValueError: a group without examples.
        """
        ids: list[str] = []
        for group in groups:
            names = [name for name, i in self.files.ids.items() if self.files.groups[i] == group]
            if not names:
                raise ValueError(f"group {group!r} is unknown: no example of this store is in it")
            ids += names
        return ids

    def _why_unknown(self, name: str) -> str:
        """Why an id is none of this store's."""
        reading = (self.files.source or {}).get("reading", {})
        if name in reading.get("public", ()):
            return "it is public, one of those that trained the base, which are not in the store"
        if name in reading.get("test", ()):
            return "it only validates, and was never in the store"
        if name in self.files.groups:
            return "it is a group; delete its members by the group"
        return "it is no example of this store, and never was one (those deleted stay known)"

    def delete(self, ids: Iterable[str], *, who: str = "") -> list[Outcome]:
        """Deletes examples; returns once that is on disk and no reader can serve their slices.

        Repeating a deletion is no error and changes nothing.

        Args:
            ids: ids of the examples.
            who: name for the ledger.

        Returns:
            What became of every id, in their order.

        Raises:
            ValueError: an id that is malformed or unknown; then none of them is deleted.
            OSError: the ledger cannot be written, as on a full disk; nothing is deleted.
        """
        if isinstance(ids, str):
            raise ValueError(f"ids is {ids!r}; several are needed, e.g. [{ids!r}]")
        requests = list(ids)
        for name in requests:
            check_id(name)
            if name not in self.files.ids:
                raise ValueError(f"id {name!r} is unknown: {self._why_unknown(name)}")
        if not requests:
            raise ValueError("ids is empty; at least one is needed")
        n_slices = self.plan.n_slices
        with self.ledger.writing():
            self._take_new()
            new = [name for name in dict.fromkeys(requests) if name not in self.deleted]
            if new:
                places = sorted({self.files.place(name) for name in new})
                slices = [list(divmod(place, n_slices)) for place in places]
                self.ledger.append("delete", {"ids": new, "slices": slices}, who)
                self._take_new()
            else:
                self.ledger.sync()  # the writer of the entry may have been killed before it did
        return [
            Outcome(
                name,
                *divmod(self.files.place(name), n_slices),
                self.deleted[name],
                name not in new or name in requests[:i],
            )
            for i, name in enumerate(requests)
        ]
