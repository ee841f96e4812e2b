"""A store on disk that serves an ensemble, deletes examples from it, and can prove what it did.

Deleting is `store`'s, answering `predictor`'s. `repair` trains orders anew on what is left, as a
new generation that knows up to which entry it has seen deletions; later ones count against it. The
files are those of `files`.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import checkpoint, configuration, folders, tree
from jaxunlearn.core.disk import DamagedError, sync_folder
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import prefixes
from jaxunlearn.exact.examples import Examples, check_examples, remaining, row_digests
from jaxunlearn.exact.files import check_id, digest_of, file_digest, place_of, write_json
from jaxunlearn.exact.ledger import Ledger
from jaxunlearn.exact.plan import Plan, Prefix
from jaxunlearn.exact.predictor import Predictor
from jaxunlearn.exact.sliceable import Config, network_of, record_of
from jaxunlearn.exact.store import Outcome
from jaxunlearn.nn.images import vit

__all__ = ["Outcome", "Service", "create", "place_of"]


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
        folder: folder of the store; it must not hold anything.
        plan: the plan.
        config: config of the network, a ViT or a decoder.
        base: its parameters; the head is where every order begins.
        ids: ids of the examples, each once.
        examples: arrays [n, ...], see `sliceable`. Their hashes are kept, not they themselves.
        groups: group of every example; those of one group share a slice, and so are given up
            together. By default each is its own.
        source: origin of the examples, JSON-like; kept for whoever reads them again.
        who: name for the ledger.

    Raises:
        ValueError: a folder that holds something, ids that are not unique or malformed, examples
            that the network cannot read, a slice with more of them than its capacity, or layers
            that do not suffice.
    """
    folder, ids = Path(folder), list(ids)
    groups = ids if groups is None else list(groups)
    check_new(folder, plan, config, ids, groups)
    check_examples(config, examples, len(ids))
    # Under another name first: after a kill there is a whole store, or none.
    new = folder.with_name(f".{folder.name}.new")
    folders.check_link(new)
    new.mkdir(parents=True, exist_ok=True)
    lock = os.open(new, os.O_RDONLY)
    try:
        folders.lock(lock, f"another process makes {new} into a store")
        for left in new.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        digests = row_digests(network_of(config), examples)
        names = {"ids": ids, "groups": groups, "sha256": digests}
        digest = _write(new, plan, config, base, names, source)
        ledger = Ledger(new / "ledger.jsonl")
        with ledger.writing():
            ledger.append("plan", {"plan": digest, "examples": len(ids)}, who)
        new.replace(folder)
    finally:
        os.close(lock)
    sync_folder(folder.absolute().parent)
    return Service(folder)


def _write(
    folder: Path, plan: Plan, config: Config, base: Tree, names: dict[str, list[str]], source: Any
) -> str:
    """Writes what never changes in a store; returns the hash of its plan."""
    stored = checkpoint.store_shared(folder / "base", base)
    record = {
        "plan": dataclasses.asdict(plan),
        "network": record_of(config),
        "base": stored,
        "base_file": file_digest(folder / "base" / f"{stored}.npz"),
        "examples": write_json(folder / "examples.json", names),
        "source": source,
        "configuration": configuration.current(),
    }
    return write_json(folder / "plan.json", record)


def check_new(folder: Path, plan: Plan, config: Config, ids: list[str], groups: list[str]) -> None:
    """Raises a ValueError where `create` cannot make a store."""
    prefixes.check_plan(network_of(config), plan)
    if plan.recipe.augment and not isinstance(config, vit.Config):
        raise ValueError(f"augment is {list(plan.recipe.augment)}; it is for images, not for texts")
    _check_ids(ids, groups)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder {folder} is a file or holds something already; choose another")
    places = np.array([place_of(plan, group) for group in groups])
    prefixes.arrange(plan, {"y": np.zeros(len(ids))}, places)  # raises if a slice is too full


def _check_ids(ids: list[str], groups: list[str]) -> None:
    if len(ids) != len(groups):
        raise ValueError(f"groups has {len(groups)} entries; there are {len(ids)} ids")
    for name in (*ids, *groups):
        check_id(name)
    if not ids:
        raise ValueError("ids is empty; at least one example is needed")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"id {name!r} is there twice")
        seen.add(name)


class Service(Predictor):
    """A store that is open; any number of processes may have it open, one of which may train."""

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
            ids: ids of the rows; by default all of the store, in its order.
            who: name for the ledger.
            mesh: devices that share the lanes.
            progress: see `prefixes.train`.

        Raises:
            ValueError: an example that is missing, or is not what the store was made with; another
                process trains this store; or it was made under another JAX configuration.
            ArithmeticError: a loss that is not finite.
        """
        with self._training():
            self._train("train", examples, ids, self.plan.n_slices, who, mesh, progress)

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

        Arguments are those of `train`; `below`: only orders with fewer stages than this are
        trained, by default all that lost any.

        Returns:
            The orders (shard, order) that were trained.

        Raises:
            ValueError: as in `train`, or `below` is not among 1 to L.
        """
        n_slices = self.plan.n_slices
        if below is not None and not 1 <= below <= n_slices:
            raise ValueError(f"below is {below}; 1 to {n_slices} are allowed")
        least = n_slices if below is None else below
        with self._training():
            return self._train("repair", examples, ids, least, who, mesh, progress)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Holds the lock of the one process that trains."""
        lock = os.open(self.folder / "training.lock", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            folders.lock(lock, f"another process trains the store {self.folder}")
            yield
        finally:
            os.close(lock)

    def _train(
        self,
        what: str,
        examples: Examples,
        ids: Sequence[str] | None,
        least: int,
        who: str,
        mesh: Mesh | None,
        progress: prefixes.Progress | None,
    ) -> list[tuple[int, int]]:
        """Trains the orders with fewer stages than `least`, and says so in the ledger."""
        configuration.check(self.files.configuration, str(self.folder))
        self.refresh()
        seen, plan = len(self.ledger.entries) - 1, self.plan
        slices, left = self._slices(examples, ids), self.state.whole()
        todo = [(int(a), int(b)) for a, b in np.argwhere(left < least)]
        if todo:
            only = [(a, plan.orders[a][b]) for a, b in todo]
            # A run is known by what it reads and trains: after a kill the same one goes on, another
            # one begins anew. Its lanes are numbered among its own prefixes.
            reads = [self.files.digest, tree.digest(slices), only, left.tolist()]
            trained = prefixes.train(
                self.network,
                self.base,
                plan,
                slices,
                only=only,
                known=self._known(left),
                mesh=mesh,
                folder=self.folder / "work" / digest_of(reads)[:16],
                progress=progress,
            )
            written = [self._written(trained, a, b) for a, b in todo]
            with self.ledger.writing():
                self._take_new()
                self.ledger.append(what, {"seen": seen, "orders": written}, who)
                self._take_new()
        current = self.state.trained.items()
        self.weights.sweep((a, b, generation.number) for (a, b), generation in current)
        return todo

    def _known(self, left: np.ndarray) -> dict[Prefix, prefixes.Weights]:
        """The stages that are left: no slice of theirs lost anything since they were trained."""
        known = {}
        for a, b in self.state.trained:
            stored, whole = self.order(a, b), self.plan.orders[a][b]
            for level in range(1, left[a, b] + 1):
                known[a, whole[:level]] = prefixes.stage_of(self.plan, stored, level)
        return known

    def _written(
        self, trained: dict[Prefix, prefixes.Weights], shard: int, order: int
    ) -> dict[str, Any]:
        """Writes the next generation of an order; returns what the ledger says of it."""
        before = self.state.trained.get((shard, order))
        generation = 0 if before is None else before.number + 1
        weights = prefixes.assembled(self.plan, trained, shard, order)
        digest = self.weights.write(shard, order, generation, weights)
        return {"shard": shard, "order": order, "generation": generation, "sha256": digest}

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
                since; examples and configuration as in `train`.
        """

        def check() -> dict[str, Any]:
            checked = self._check_files(head)
            if examples is None:
                return checked
            chosen = self._checked_prefix(prefix)
            self._retrain(self._slices(examples, ids), *chosen)
            return checked | {"prefix": list(chosen)}

        return self._current(check)

    def _check_files(self, head: str | None) -> dict[str, Any]:
        ledger = Ledger(self.ledger.path)  # from the first entry on
        entries = ledger.refresh()
        if head is not None and not ledger.knows(head):
            raise DamagedError(f"{ledger.path} has no entry with the checksum {head}")
        self.files.check()
        for key in self.state.trained:
            self.order(*key)
        return {"entries": len(entries), "orders": len(self.state.trained), "prefix": None}

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
        configuration.check(self.files.configuration, str(self.folder))
        whole, stored = self.plan.orders[a][b][:depth], self.order(a, b)
        trained = prefixes.train(self.network, self.base, self.plan, slices, only=[(a, whole)])
        for level in range(1, depth + 1):
            again, kept = trained[a, whole[:level]], prefixes.stage_of(self.plan, stored, level)
            if tree.digest(again) != tree.digest(kept):
                raise DamagedError(
                    f"order {b} of shard {a}, generation {self.state.trained[a, b].number}: "
                    f"stage {level} is not what training gives from the examples that are left"
                )

    def _slices(self, examples: Examples, ids: Sequence[str] | None) -> prefixes.Slices:
        """What was not deleted, in its slices.

        That is what a prefix that is left was trained on: what was deleted since was in no slice of
        it.
        """
        rows = remaining(self.files, self.config, examples, ids, self.deleted)
        return prefixes.arrange(self.plan, *rows)
