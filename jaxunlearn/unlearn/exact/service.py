"""A store on disk that serves an ensemble, deletes examples from it, and can prove what it did.

    plan.json              the plan and the network; its hash is the ledger's first entry
    base/HASH.npz          the frozen base
    examples.json          ids, and the groups that keep copies of one fact in one slice
    orders/NUMBER.npz      a generation of an order of a shard: one adapter, a head for each stage
    ledger.jsonl           see `ledger`

A deletion is an entry of the ledger: once it is on disk, no reader serves its slice any more, since
every `predict` looks at the ledger before each batch. Nothing is retrained, and no other file
changes. `repair` trains orders anew on what is left, as a new generation that knows up to which
entry it has seen deletions; later ones count against it.
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import checkpoint, tree
from jaxunlearn.core.checkpoint import BlockStore, DamagedError
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn import vit
from jaxunlearn.unlearn.exact import deletion, networks, serving, training
from jaxunlearn.unlearn.exact.ledger import Entry, Ledger
from jaxunlearn.unlearn.exact.plan import Plan, Recipe

Examples = dict[str, Any]  # of arrays [n, ...], `x` and `y`


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


def place_of(plan: Plan, group: str) -> int:
    """a L + s for slice s of shard a: a hash of the id, whatever else is in the data."""
    word = hashlib.sha256(group.encode()).digest()[:8]
    return int.from_bytes(word, "big") % (plan.n_shards * plan.n_slices)


def create(
    folder: str | os.PathLike,
    plan: Plan,
    config: vit.Config,
    base: Tree,
    ids: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    who: str = "",
) -> "Service":
    """Makes a store, in which nothing is trained yet.

    Args:
        folder: must not hold anything.
        plan: the plan.
        config: of the network.
        base: its parameters; the head is where every order begins.
        ids: of the examples, each once.
        groups: of every example; those of one group share a slice, and so are given up together.
            By default each is its own.
        who: is written to the ledger.

    Raises:
        ValueError: a folder that holds something, ids that are not unique or malformed, a slice
            with more examples than its capacity, or layers that do not suffice.
    """
    folder, network = Path(folder), networks.of_vit(config)
    training.check_layers(network, plan)
    groups = list(ids) if groups is None else list(groups)
    ids = list(ids)
    if len(ids) != len(groups):
        raise ValueError(f"groups has {len(groups)} entries; there are {len(ids)} ids")
    for name in (*ids, *groups):
        _check_id(name)
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in set(ids[:i]))
        raise ValueError(f"id {twice!r} is there twice")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder {folder} holds something already; choose another")
    places = np.array([place_of(plan, group) for group in groups])
    training.arrange(plan, {"y": np.zeros(len(ids))}, places)  # raises if a slice is too full
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "plan": dataclasses.asdict(plan),
        "network": dataclasses.asdict(config),
        "base": checkpoint.store_shared(folder / "base", base),
        "examples": _write_json(folder / "examples.json", {"ids": ids, "groups": groups}),
    }
    digest = _write_json(folder / "plan.json", record)
    ledger = Ledger(folder / "ledger.jsonl")
    with ledger.writing():
        ledger.append("plan", {"plan": digest, "examples": len(ids)}, who)
    return Service(folder)


class Service:
    """A store that is open; any number of processes may have it open.

    Raises:
        ValueError: there is no store.
        DamagedError: a file is not what the ledger says; it is named.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / "ledger.jsonl").exists():
            raise ValueError(f"folder is {str(folder)!r}, which holds no store")
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        self._generations: dict[tuple[int, int], tuple[int, int, str]] = {}
        self._weights: dict[tuple[int, int], tuple[str, Any]] = {}
        self.deleted: dict[str, int] = {}  # entry by id
        self._hit: dict[int, int] = {}  # by place, the last entry that deleted from it
        self._applied = 0  # entries
        record = _read_json(self.folder / "plan.json", None)
        self.plan = _plan_of(record["plan"])
        self.config = vit.Config(**record["network"] | {"image": tuple(record["network"]["image"])})
        self.network = networks.of_vit(self.config)
        examples = _read_json(self.folder / "examples.json", record["examples"])
        self.ids = {name: i for i, name in enumerate(examples["ids"])}
        self.places = np.array([place_of(self.plan, group) for group in examples["groups"]])
        self._base_digest = record["base"]
        self.refresh()
        self._plan_digest = _digest(record)
        if self._plan_digest != self.ledger.entries[0].data["plan"]:
            raise DamagedError(f"{self.folder / 'plan.json'} is not the plan of the ledger")

    # State

    def refresh(self) -> None:
        """Reads what other processes added to the ledger."""
        self.ledger.refresh()
        self._apply_new()

    def _apply_new(self) -> None:
        for entry in self.ledger.entries[self._applied :]:
            self._apply(entry)
        self._applied = len(self.ledger.entries)

    def _apply(self, entry: Entry) -> None:
        if entry.what == "delete":
            for name in entry.data["ids"]:
                self.deleted.setdefault(name, entry.number)
                self._hit[int(self.places[self.ids[name]])] = entry.number
        elif entry.what in ("train", "repair"):
            for own in entry.data["orders"]:
                key = (own["shard"], own["order"])
                self._generations[key] = (own["generation"], entry.data["seen"], own["sha256"])

    def surviving(self) -> np.ndarray:
        """Stages left of every order, [m, B]; 0 where an order has never been trained."""
        plan = self.plan
        left = np.zeros((plan.n_shards, plan.budget), np.int64)
        for (shard, order), (_, seen, _) in self._generations.items():
            gone = {place for place, number in self._hit.items() if number > seen}
            whole = plan.orders[shard][order]
            hit = [shard * plan.n_slices + s in gone for s in whole]
            left[shard, order] = hit.index(True) if True in hit else plan.n_slices
        return left

    def status(self) -> dict[str, Any]:
        """What is there, JSON-like."""
        self.refresh()
        left = self.surviving()
        served = deletion.served(left)
        plan = self.plan
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        return {
            "shards": plan.n_shards,
            "slices": plan.n_slices,
            "budget": plan.budget,
            "examples": len(self.ids),
            "deleted": len(self.deleted),
            "entries": len(self.ledger.entries),
            "head": self.ledger.head,
            "stages_left": left.tolist(),
            "serves": {"order": served.order.tolist(), "depth": served.depth.tolist()},
            "living_shards": int((served.depth > 0).sum()),
            "needs_retraining": bool(deletion.needs_retraining(left)),
            "expected_requests_when_new": deletion.lifetime(plan.table).mean,
            "bytes": size,
        }

    # Deleting

    def delete(self, ids: Iterable[str], *, who: str = "") -> list[Outcome]:
        """Deletes examples; returns once that is on disk and no reader can serve their slices.

        Repeating a deletion is no error and changes nothing.

        Raises:
            ValueError: an id that is malformed or unknown; then none of them is deleted.
            OSError: the ledger cannot be written, as on a full disk; nothing is deleted.
        """
        wanted = list(dict.fromkeys(ids))
        for name in wanted:
            _check_id(name)
            if name not in self.ids:
                raise ValueError(f"id {name!r} is unknown: it is no example of this store")
        if not wanted:
            raise ValueError("ids is empty; at least one is needed")
        with self.ledger.writing():
            self._apply_new()
            fresh = [name for name in wanted if name not in self.deleted]
            if fresh:
                places = sorted({int(self.places[self.ids[name]]) for name in fresh})
                n_slices = self.plan.n_slices
                effect = [[place // n_slices, place % n_slices] for place in places]
                data = {"ids": fresh, "slices": effect}
                self.ledger.append("delete", data, who)
                self._apply_new()
        return [
            Outcome(
                name,
                *divmod(int(self.places[self.ids[name]]), self.plan.n_slices),
                self.deleted[name],
                name not in fresh,
            )
            for name in wanted
        ]

    # Training

    def train(
        self,
        examples: Examples,
        *,
        who: str = "",
        mesh: Mesh | None = None,
        progress: training.Progress | None = None,
    ) -> None:
        """Trains all orders; see `repair`, which trains those that are not whole."""
        self._train(examples, "train", who, mesh, progress)

    def repair(
        self,
        examples: Examples,
        *,
        below: int | None = None,
        who: str = "",
        mesh: Mesh | None = None,
        progress: training.Progress | None = None,
    ) -> list[tuple[int, int]]:
        """Trains anew the orders that lost stages, on what was not deleted, while others serve.

        Args:
            examples: see `train`.
            below: orders with fewer stages than this are trained; by default all that lost any.
            who: is written to the ledger.
            mesh: devices that share the lanes.
            progress: see `training.train`.

        Returns:
            The orders (shard, order) that were trained.
        """
        return self._train(examples, "repair", who, mesh, progress, below)

    def _train(self, examples, what, who, mesh, progress, below=None) -> list[tuple[int, int]]:
        self._check_examples(examples)
        with (self.folder / "training.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process trains the store {self.folder}; wait for it"
                ) from error
            return self._train_locked(examples, what, who, mesh, progress, below)

    def _train_locked(self, examples, what, who, mesh, progress, below):
        self.refresh()
        seen, plan = len(self.ledger.entries) - 1, self.plan
        least = plan.n_slices if below is None else below
        todo = [(int(a), int(b)) for a, b in np.argwhere(self.surviving() < least)]
        if not todo:
            return []
        gone = sorted(self.deleted)
        only = [(a, plan.orders[a][b]) for a, b in todo]
        # A run is known by what it reads and trains: after a kill the same one goes on, another one
        # begins anew. Its lanes are numbered among its own prefixes.
        slices = self._slices(examples, gone)
        reads = [self._plan_digest, tree.digest(slices), only]
        work = self.folder / "work" / _digest(reads)[:16]
        trained = training.train(
            self.network,
            self.base,
            plan,
            slices,
            only=only,
            mesh=mesh,
            folder=work,
            progress=progress,
        )
        written = []
        store = BlockStore(self.folder / "orders")
        for a, b in todo:
            order = training.assembled(plan, trained, a, b)
            generation = self._generations.get((a, b), (-1,))[0] + 1
            number = self._number(a, b, generation)
            store.write(number, order)
            digest = _file_digest(store.file(number))
            written.append({"shard": a, "order": b, "generation": generation, "sha256": digest})
        with self.ledger.writing():
            self._apply_new()
            self.ledger.append(what, {"seen": seen, "orders": written}, who)
            self._apply_new()
        shutil.rmtree(self.folder / "work", ignore_errors=True)  # and what killed runs left
        return todo

    def verify(
        self, examples: Examples | None = None, prefix: tuple[int, int, int] | None = None
    ) -> dict[str, Any]:
        """Checks the chain and every file; with examples retrains a prefix and compares bits.

        Args:
            examples: see `train`; those that the store trained on.
            prefix: shard, order, and number of stages; by default the longest that is served.

        Returns:
            What was checked.

        Raises:
            DamagedError: something is not what it should be; it is named.
            ValueError: a prefix that does not exist, or was trained on examples that were deleted
                since.
        """
        ledger = Ledger(self.ledger.path)  # from the first entry on
        entries = ledger.refresh()
        if ledger.head != self.ledger.head:
            self.refresh()
        if self._plan_digest != entries[0].data["plan"]:
            raise DamagedError(f"{self.folder / 'plan.json'} is not the plan of the ledger")
        checkpoint.load_shared(self.folder / "base", self._base_digest)
        for key in self._generations:
            self._order(*key, anew=True)
        found = {"entries": len(entries), "orders": len(self._generations), "prefix": None}
        if examples is None:
            return found
        self._check_examples(examples)
        left = self.surviving()
        if prefix is None:
            a, b = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
            prefix = (a, b, int(left[a, b]))
        a, b, depth = prefix
        if not (0 <= a < self.plan.n_shards and 0 <= b < self.plan.budget):
            raise ValueError(f"prefix is {prefix}; there is no such shard and order")
        if not 1 <= depth <= left[a, b]:
            raise ValueError(
                f"prefix is {prefix}; order {b} of shard {a} has {left[a, b]} stages left"
            )
        generation, seen, _ = self._generations[a, b]
        gone = [name for name, entry in self.deleted.items() if entry <= seen]
        whole = self.plan.orders[a][b][:depth]
        slices = self._slices(examples, gone)
        trained = training.train(self.network, self.base, self.plan, slices, only=[(a, whole)])
        stored = self._order(a, b)
        for level in range(1, depth + 1):
            own, kept = trained[a, whole[:level]], self.stage_of(stored, level)
            if tree.digest(own) != tree.digest(kept):
                raise DamagedError(
                    f"order {b} of shard {a}, generation {generation}: stage {level} is not what "
                    "training gives from the examples that are left"
                )
        return found | {"prefix": list(prefix)}

    def stage_of(self, order: training.Stage, level: int) -> training.Stage:
        """What one stage trained, out of an assembled order."""
        first, last = self.plan.group(level)
        stage = {"adapter": jax.tree.map(lambda leaf: leaf[first:last], order["adapter"])}
        if "heads" in order:
            stage["head"] = jax.tree.map(lambda leaf: leaf[level - 1], order["heads"])
        return stage

    def _slices(self, examples: Examples, gone: Iterable[str]) -> training.Slices:
        places = self.places.copy()
        places[[self.ids[name] for name in gone]] = -1
        return training.arrange(self.plan, examples, places)

    def _check_examples(self, examples: Examples) -> None:
        for name in ("x", "y"):
            if name not in examples or len(examples[name]) != len(self.ids):
                n = len(examples[name]) if name in examples else "no"
                raise ValueError(f"examples have {n} rows of {name}; the store has {len(self.ids)}")
        if tuple(examples["x"].shape[1:]) != self.config.image:
            raise ValueError(
                f"x has shape {list(examples['x'].shape)}; [n, {self.config.image}] is needed"
            )

    # Serving

    def predict(self, x: np.ndarray, *, batch: int = 256) -> np.ndarray:
        """The mean logits of the living shards, [n, n_classes].

        Before every batch the ledger is looked at: a deletion that was acknowledged before then is
        in effect.

        Raises:
            ValueError: no shard is alive, or images of another shape.
            DamagedError: the ledger or a file that is needed is damaged.
        """
        found = []
        for at in range(0, len(x), batch):
            self.refresh()
            served = deletion.served(self.surviving())
            own = self._chosen(served)
            part = serving.predict(
                self.network,
                self.plan,
                self.base,
                own,
                {"x": x[at : at + batch]},
                served.depth > 0,
                chunk=batch,
            )
            found.append(part)
        return np.concatenate(found)

    @functools.cached_property
    def base(self) -> Tree:
        """The frozen base."""
        return checkpoint.load_shared(self.folder / "base", self._base_digest)

    def _chosen(self, served: deletion.Served) -> Tree:
        """What each shard answers with; read from disk where it changed."""
        if not (served.depth > 0).any():
            raise ValueError("no shard is alive: the ensemble must be trained again")
        living = int(np.argmax(served.depth > 0))
        own = [
            self._order(a, int(b)) if depth else self._order(living, int(served.order[living]))
            for a, (b, depth) in enumerate(zip(served.order, served.depth, strict=True))
        ]
        weights = jax.tree.map(lambda *leaves: np.stack(leaves)[:, None], *own)
        only = deletion.Served(np.zeros_like(served.order), served.depth)
        return serving.chosen(self.plan, self.network, weights, only)

    def _order(self, shard: int, order: int, *, anew: bool = False) -> Any:
        generation, _, digest = self._generations[shard, order]
        known = self._weights.get((shard, order))
        if known is None or known[0] != digest or anew:
            store = BlockStore(self.folder / "orders")
            number = self._number(shard, order, generation)
            file = store.file(number)
            if not file.exists():
                raise DamagedError(f"{file} is not there")
            if _file_digest(file) != digest:
                raise DamagedError(f"{file} is damaged: it is not what the ledger says")
            self._weights[shard, order] = known = (digest, store.read(number))
        return known[1]

    def _number(self, shard: int, order: int, generation: int) -> int:
        per_generation = self.plan.n_shards * self.plan.budget
        return (generation * per_generation) + shard * self.plan.budget + order


def _check_id(name: Any) -> None:
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"id is {name!r}; a printable text without blanks at its ends is needed")


def _plan_of(record: dict[str, Any]) -> Plan:
    orders = tuple(tuple(map(tuple, shard)) for shard in record["orders"])
    return Plan(**record | {"orders": orders, "recipe": Recipe(**record["recipe"])})


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> str:
    """Writes a file; returns the hash of what it says."""
    with checkpoint.replacing(path) as file:
        file.write(json.dumps(value).encode())
    return _digest(json.loads(json.dumps(value)))


def _read_json(path: Path, digest: str | None) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    if digest is not None and _digest(value) != digest:
        raise DamagedError(f"{path} is damaged (its contents have another hash)")
    return value
