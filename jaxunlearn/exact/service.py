"""A store on disk that serves an ensemble, deletes examples from it, and can prove what it did.

A deletion is an entry of the ledger: once it is on disk, no reader serves its slice any more, since
every `predict` looks at the ledger before each batch. Nothing is retrained, and no other file
changes. `repair` trains orders anew on what is left, as a new generation that knows up to which
entry it has seen deletions; later ones count against it. The files are those of `store`.
"""

import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import tree
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import deletion, prefixes, serving
from jaxunlearn.exact.ledger import Ledger
from jaxunlearn.exact.plan import Plan, Prefix
from jaxunlearn.exact.state import State
from jaxunlearn.exact.store import (
    Config,
    Examples,
    Files,
    check_id,
    check_inputs,
    digest_of,
    lay_out,
    place_of,
)

__all__ = ["Outcome", "Service", "create", "place_of"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        example: the id.
        shard: that holds it.
        slice: of the shard, which is given up.
        entry: number of the ledger's entry that says so.
        repeated: whether it had been deleted before.
    """

    example: str
    shard: int
    slice: int
    entry: int
    repeated: bool


def create(
    folder: str | os.PathLike,
    plan: Plan,
    config: Config,
    base: Tree,
    ids: Sequence[str],
    examples: Examples,
    *,
    groups: Sequence[str] | None = None,
    source: dict[str, Any] | None = None,
    who: str = "",
) -> "Service":
    """Makes a store, in which nothing is trained yet.

    Args:
        folder: must not hold anything.
        plan: the plan.
        config: of the network, a ViT or a decoder.
        base: its parameters; the head is where every order begins.
        ids: of the examples, each once.
        examples: arrays [n, ...], see `networks`. Their hashes are kept, not they themselves.
        groups: of every example; those of one group share a slice, and so are given up together.
            By default each is its own.
        source: where the examples come from, JSON-like; kept for whoever reads them again.
        who: is written to the ledger.

    Raises:
        ValueError: a folder that holds something, ids that are not unique or malformed, examples
            that the network cannot read, a slice with more of them than its capacity, or layers
            that do not suffice.
    """
    lay_out(folder, plan, config, base, ids, examples, groups=groups, source=source, who=who)
    return Service(folder)


class Service:
    """A store that is open; any number of processes may have it open.

    Attributes:
        files: what never changes.
        ledger: what happened.
        state: what that comes to.

    Raises:
        ValueError: there is no store.
        DamagedError: a file is not what the ledger says; it is named.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / "ledger.jsonl").exists():
            raise ValueError(f"folder is {str(folder)!r}, which holds no store")
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        if not self.ledger.refresh():
            raise DamagedError(f"{self.ledger.path} is damaged: it has no whole entry")
        self.files = Files(self.folder, self.ledger.entries[0].data["plan"])
        self.plan, self.network = self.files.plan, self.files.network
        self.state = State(self.files)
        self._base: Tree | None = None
        self._served: tuple[Any, Tree] | None = None  # what it is, and on the device
        self._take_new()

    # State

    def refresh(self) -> None:
        """Reads what other processes added to the ledger."""
        self.ledger.refresh()
        self._take_new()

    def _take_new(self) -> None:
        self.state.take(self.ledger.entries)

    def _current(self, call: Callable[[], Any]) -> Any:
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
        """By id, the number of the entry that deleted it."""
        return self.state.deleted

    def surviving(self) -> np.ndarray:
        """Stages left of every order, int [m, B]; see `State.surviving`."""
        return self.state.surviving()

    def status(self) -> dict[str, Any]:
        """What is there, JSON-like."""
        self.refresh()
        left = self.surviving()
        served = deletion.served(left)
        plan = self.plan
        return {
            "shards": plan.n_shards,
            "slices": plan.n_slices,
            "budget": plan.budget,
            "examples": len(self.files.ids),
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
        """Whether it is time to train again; see `deletion.needs_retraining`."""
        return deletion.needs_retraining(self.surviving(), trigger=trigger, depth=depth)

    # Deleting

    def members(self, groups: Iterable[str]) -> list[str]:
        """The ids of all examples of some groups.

        Raises:
            ValueError: a group without examples.
        """
        found: list[str] = []
        for group in groups:
            own = [name for name, i in self.files.ids.items() if self.files.groups[i] == group]
            if not own:
                raise ValueError(f"group {group!r} is unknown: no example of this store is in it")
            found += own
        return found

    def delete(self, ids: Iterable[str], *, who: str = "") -> list[Outcome]:
        """Deletes examples; returns once that is on disk and no reader can serve their slices.

        Repeating a deletion is no error and changes nothing.

        Returns:
            What became of every id, in their order.

        Raises:
            ValueError: an id that is malformed or unknown; then none of them is deleted.
            OSError: the ledger cannot be written, as on a full disk; nothing is deleted.
        """
        if isinstance(ids, str):
            raise ValueError(f"ids is {ids!r}; several are needed, e.g. [{ids!r}]")
        asked = list(ids)
        for name in asked:
            check_id(name)
            if name not in self.files.ids:
                raise ValueError(f"id {name!r} is unknown: it is no example of this store")
        wanted = list(dict.fromkeys(asked))
        if not wanted:
            raise ValueError("ids is empty; at least one is needed")
        with self.ledger.writing():
            self._take_new()
            fresh = [name for name in wanted if name not in self.deleted]
            if fresh:
                places = sorted({self.files.place(name) for name in fresh})
                n_slices = self.plan.n_slices
                effect = [[place // n_slices, place % n_slices] for place in places]
                data = {"ids": fresh, "slices": effect}
                self.ledger.append("delete", data, who)
                self._take_new()
            else:
                self.ledger.sync()  # the writer of the entry may have been killed before it did
        return [
            Outcome(
                name,
                *divmod(self.files.place(name), self.plan.n_slices),
                self.deleted[name],
                name not in fresh or name in asked[:i],
            )
            for i, name in enumerate(asked)
        ]

    # Training

    def train(
        self,
        examples: Examples,
        ids: Sequence[str] | None = None,
        *,
        who: str = "",
        mesh: Mesh | None = None,
        progress: prefixes.Progress | None = None,
    ) -> None:
        """Trains all orders; see `repair`, which trains those that are not whole.

        Args:
            examples: arrays with a row for each id. Rows of what was deleted are not read, and need
                not be there; all others are checked against their hashes.
            ids: of the rows; by default all of the store, in its order.
            who: is written to the ledger.
            mesh: devices that share the lanes.
            progress: see `training.train`.

        Raises:
            ValueError: an example that is missing, or is not what the store was made with; or
                another process trains this store.
            ArithmeticError: a loss that is not finite.
        """
        self._train(examples, ids, "train", who, mesh, progress)

    def repair(
        self,
        examples: Examples,
        ids: Sequence[str] | None = None,
        *,
        below: int | None = None,
        who: str = "",
        mesh: Mesh | None = None,
        progress: prefixes.Progress | None = None,
    ) -> list[tuple[int, int]]:
        """Trains anew the orders that lost stages, on what was not deleted, while others serve.

        Args:
            examples: see `train`.
            ids: see `train`.
            below: orders with fewer stages than this are trained; by default all that lost any.
            who: is written to the ledger.
            mesh: devices that share the lanes.
            progress: see `training.train`.

        Returns:
            The orders (shard, order) that were trained.

        Raises:
            ValueError: as in `train`, or `below` is not among 1 to L.
        """
        return self._train(examples, ids, "repair", who, mesh, progress, below)

    def _train(self, examples, ids, what, who, mesh, progress, below=None):
        if below is not None and not 1 <= below <= self.plan.n_slices:
            raise ValueError(f"below is {below}; 1 to {self.plan.n_slices} are allowed")
        with (self.folder / "training.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process trains the store {self.folder}; wait for it"
                ) from error
            return self._train_locked(examples, ids, what, who, mesh, progress, below)

    def _train_locked(self, examples, ids, what, who, mesh, progress, below):
        self.refresh()
        seen, plan = len(self.ledger.entries) - 1, self.plan
        slices = self._slices(examples, ids)
        left = self.state.whole()
        least = plan.n_slices if below is None else below
        todo = [(int(a), int(b)) for a, b in np.argwhere(left < least)]
        if not todo:
            self._sweep()
            return []
        only = [(a, plan.orders[a][b]) for a, b in todo]
        # A run is known by what it reads and trains: after a kill the same one goes on, another one
        # begins anew. Its lanes are numbered among its own prefixes.
        reads = [self.files.digest, tree.digest(slices), only, left.tolist()]
        work = self.folder / "work" / digest_of(reads)[:16]
        trained = prefixes.train(
            self.network,
            self.base,
            plan,
            slices,
            only=only,
            known=self._known(left),
            mesh=mesh,
            folder=work,
            progress=progress,
        )
        written = []
        for a, b in todo:
            order = prefixes.assembled(plan, trained, a, b)
            before = self.state.trained.get((a, b))
            generation = 0 if before is None else before.generation + 1
            digest = self.files.write_order(a, b, generation, order)
            written.append({"shard": a, "order": b, "generation": generation, "sha256": digest})
        with self.ledger.writing():
            self._take_new()
            self.ledger.append(what, {"seen": seen, "orders": written}, who)
            self._take_new()
        self._sweep()
        return todo

    def _sweep(self) -> None:
        self.files.sweep((a, b, own.generation) for (a, b), own in self.state.trained.items())

    def _known(self, left: np.ndarray) -> dict[Prefix, prefixes.Weights]:
        """The stages that are left: no slice of theirs lost anything since they were trained."""
        known = {}
        for a, b in self.state.trained:
            stored, whole = self._order(a, b), self.plan.orders[a][b]
            for level in range(1, left[a, b] + 1):
                known[a, whole[:level]] = prefixes.stage_of(self.plan, stored, level)
        return known

    def verify(
        self,
        examples: Examples | None = None,
        prefix: tuple[int, int, int] | None = None,
        *,
        ids: Sequence[str] | None = None,
        head: str | None = None,
    ) -> dict[str, Any]:
        """Checks the chain and every file; with examples retrains a prefix and compares bits.

        Args:
            examples: see `train`.
            prefix: shard, order, and number of stages; by default the longest that is served.
            ids: see `train`.
            head: a checksum that `status` gave once, and that the ledger must know: it shows that
                nothing up to there was cut off.

        Returns:
            What was checked.

        Raises:
            DamagedError: something is not what it should be; it is named.
            ValueError: a prefix that does not exist, or was trained on examples that were deleted
                since; examples as in `train`.
        """
        return self._current(lambda: self._verify(examples, ids, prefix, head))

    def _verify(self, examples, ids, prefix, head) -> dict[str, Any]:
        ledger = Ledger(self.ledger.path)  # from the first entry on
        entries = ledger.refresh()
        if head is not None and not ledger.knows(head):
            raise DamagedError(f"{ledger.path} has no entry with the checksum {head}")
        self.files.check()
        for key in self.state.trained:
            self._order(*key)
        found = {"entries": len(entries), "orders": len(self.state.trained), "prefix": None}
        if examples is None:
            return found
        prefix = self._checked_prefix(prefix)
        self._retrain(self._slices(examples, ids), *prefix)
        return found | {"prefix": list(prefix)}

    def _checked_prefix(self, prefix: tuple[int, int, int] | None) -> tuple[int, int, int]:
        left = self.surviving()
        if not left.any():
            raise ValueError("no order has a stage left: there is nothing to train again")
        if prefix is None:
            a, b = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
            return a, b, int(left[a, b])
        a, b, depth = prefix
        if not (0 <= a < self.plan.n_shards and 0 <= b < self.plan.budget):
            raise ValueError(f"prefix is {prefix}; there is no such shard and order")
        if not 1 <= depth <= left[a, b]:
            raise ValueError(
                f"prefix is {prefix}; order {b} of shard {a} has {left[a, b]} stages left"
            )
        return prefix

    def _retrain(self, slices: prefixes.Slices, a: int, b: int, depth: int) -> None:
        whole, stored = self.plan.orders[a][b][:depth], self._order(a, b)
        trained = prefixes.train(self.network, self.base, self.plan, slices, only=[(a, whole)])
        for level in range(1, depth + 1):
            own, kept = trained[a, whole[:level]], prefixes.stage_of(self.plan, stored, level)
            if tree.digest(own) != tree.digest(kept):
                raise DamagedError(
                    f"order {b} of shard {a}, generation {self.state.trained[a, b].generation}: "
                    f"stage {level} is not what training gives from the examples that are left"
                )

    def _slices(self, examples: Examples, ids: Sequence[str] | None) -> prefixes.Slices:
        """What was not deleted, in its slices.

        That is what a prefix that is left was trained on: what was deleted since was in no slice of
        it.
        """
        return prefixes.arrange(self.plan, *self.files.rows(examples, ids, self.deleted))

    # Serving

    def predict(self, x: np.ndarray, *, batch: int = 256, **rest: np.ndarray) -> np.ndarray:
        """The mean output of the living shards, [n, ...]; see `networks` for what outputs are.

        Before every batch the ledger is looked at: a deletion that was acknowledged before then is
        in effect. Weights are read from disk and put on the device when what is served changes.

        Args:
            x: what the network reads, e.g. images [n, H, W, C].
            batch: rows of a batch.
            **rest: what its outputs need beside that: `where` and `labels` of a language model.

        Raises:
            ValueError: no shard is alive, or inputs of another shape.
            DamagedError: the ledger or a file that is needed is damaged.
        """
        check_inputs(self.files.config, x)
        if len(x) < 1 or batch < 1:
            raise ValueError(f"x has {len(x)} rows and batch is {batch}; at least 1 are needed")
        needed = self.network.asked
        if set(rest) != set(needed) or any(len(leaf) != len(x) for leaf in rest.values()):
            rows = {name: len(leaf) for name, leaf in rest.items()}
            raise ValueError(
                f"x has {len(x)} rows, the rest {rows}; as many of {list(needed)} are needed"
            )
        examples, found = {"x": x, **rest}, []
        batch = min(batch, 1 << (len(x) - 1).bit_length())  # few rows are not filled up to many
        for at in range(0, len(x), batch):
            part = {name: np.asarray(leaf)[at : at + batch] for name, leaf in examples.items()}
            own, alive = self._current(self._now_served)
            found.append(
                serving.predict(self.network, self.plan, self.base, own, part, alive, chunk=batch)
            )
        return np.concatenate(found)

    @property
    def base(self) -> Tree:
        """The frozen base, on the device."""
        if self._base is None:
            self._base = jax.device_put(self.files.base())
        return self._base

    def _now_served(self) -> tuple[Tree, np.ndarray]:
        """What each shard answers with, and which of them do, as the ledger is now."""
        served = deletion.served(self.surviving())
        return self._chosen(served), served.depth > 0

    def _chosen(self, served: deletion.Served) -> Tree:
        """What each shard answers with, on the device; read from disk where it changed."""
        if not (served.depth > 0).any():
            raise ValueError("no shard is alive: the ensemble must be trained again")
        living = int(np.argmax(served.depth > 0))
        # A dead shard's weights are not read; those of a living one stand in.
        of = [
            (a, int(b)) if depth else (living, int(served.order[living]))
            for a, (b, depth) in enumerate(zip(served.order, served.depth, strict=True))
        ]
        what = ([self.state.trained[key] for key in of], of, served.depth.tolist())
        if self._served is None or self._served[0] != what:
            orders = [self._order(*key) for key in of]
            weights = jax.tree.map(lambda *leaves: np.stack(leaves)[:, None], *orders)
            only = deletion.Served(np.zeros_like(served.order), served.depth)
            own = serving.chosen(self.plan, self.network, weights, only)
            self._served = (what, jax.device_put(own))
        return self._served[1]

    def _order(self, shard: int, order: int) -> Any:
        own = self.state.trained[shard, order]
        return self.files.read_order(shard, order, own.generation, own.sha256)
