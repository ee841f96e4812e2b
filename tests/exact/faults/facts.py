"""A small store, and what it must serve, worked out from its files alone."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.exact import deletion, orders, plan, service
from jaxunlearn.nn.images import vit

CONFIG = vit.Config((4, 4, 1), 2, width=8, n_layers=2, n_heads=2, mlp_width=16, n_classes=2)
RECIPE = plan.StageRecipe(
    rank=2, alpha=2.0, learning_rate=1e-2, epochs=1, batch_size=4, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(2, 2), 16, recipe=RECIPE, lane_width=2)
ORDERS = ((0, 1), (1, 0))  # of both shards, as `Facts` knows them
IDS = [f"image-{i}" for i in range(32)]
EXAMPLES = {
    "x": np.random.default_rng(0).normal(size=(32, 4, 4, 1)).astype(np.float32),
    "y": (np.arange(32) % 2).astype(np.int32),
}
FAILING = ("open", "write", "flush", "fsync", "replace", "mkdir")  # steps that need space
VERBS = ("delete", "train", "repair", "race", "disk")
Tell = Callable[..., None]  # a message to the process that forked this one
Kill = Callable[..., None]
PATIENCE = 300  # seconds until a process counts as stuck


def place(name: str) -> int:
    """2 a + s for slice s of shard a."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 4


def of_place(number: int) -> list[str]:
    return [name for name in IDS if place(name) == number]


HURT = (of_place(1)[0], of_place(2)[0])  # deleted before a repair: every order loses stages
LATE = (of_place(0)[1], of_place(3)[1])  # what is deleted during a run


class Facts:
    """What the files of a store say, read without the library.

    Attributes:
        lines: whole entries.
        torn: whether something follows that is no whole entry.
        deleted: entry by id.
        runs: by (shard, order), of its last generation: file, entry seen, SHA-256.
    """

    def __init__(self, folder: Path):
        *lines, rest = (folder / "ledger.jsonl").read_bytes().split(b"\n")
        self.folder, self.lines, self.torn = folder, lines, bool(rest)
        self.deleted: dict[str, int] = {}
        self.runs: dict[tuple[int, int], tuple[Path, int, str]] = {}
        before = "0" * 64
        for number, line in enumerate(lines):
            entry = json.loads(line)
            before = self._take(number, entry, before)

    def _take(self, number: int, entry: dict[str, Any], before: str) -> str:
        checksum = entry.pop("checksum")
        text = json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        good = hashlib.sha256(text.encode()).hexdigest() == checksum
        if not good or (entry["number"], entry["before"]) != (number, before):
            raise ValueError(f"the chain breaks at entry {number}")
        for name in entry["data"]["ids"] if entry["what"] == "delete" else ():
            if name in self.deleted:
                raise ValueError(f"{name} is deleted by entries {self.deleted[name]} and {number}")
            self.deleted[name] = number
        for run in entry["data"]["orders"] if entry["what"] in ("train", "repair") else ():
            key = run["shard"], run["order"]
            file = self.folder / "orders" / f"{4 * run['generation'] + 2 * key[0] + key[1]:05d}.npz"
            self.runs[key] = file, entry["data"]["seen"], run["sha256"]
        return checksum

    def gone(self, seen: int) -> tuple[str, ...]:
        """What had been deleted up to an entry."""
        return tuple(sorted(name for name, number in self.deleted.items() if number <= seen))

    def left(self) -> list[list[int]]:
        """Stages of every order before the first that a later deletion hit."""
        table = [[0, 0], [0, 0]]
        for (shard, order), (_, seen, _) in self.runs.items():
            hit = {place(name) for name, number in self.deleted.items() if number > seen}
            whole = [2 * shard + part for part in ORDERS[order]]
            table[shard][order] = next((i for i, at in enumerate(whole) if at in hit), len(whole))
        return table

    def problems(self, reference: Callable[[tuple[str, ...]], dict[str, str]]) -> Iterator[str]:
        """Generations that are not what training gives from what was left when they began."""
        for (shard, order), (file, seen, digest) in self.runs.items():
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                yield f"{file.name} is not what the ledger says"
            if bits(file) != reference(self.gone(seen))[f"{shard} {order}"]:
                yield f"{file.name} has other bits than a run that was never killed"


def bits(file: Path) -> str:
    """A hash of the arrays in a file; the file itself holds the time of day."""
    sha = hashlib.sha256()
    with np.load(file) as arrays:
        for name in arrays.files:
            sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
            sha.update(arrays[name].tobytes())
    return sha.hexdigest()


def stages(store: service.Service) -> tuple[tuple[int, int], ...]:
    """What a reader answers with: the place of every stage, and the entry its generation saw."""
    seen = {}
    for entry in store.ledger.entries:
        for run in entry.data["orders"] if entry.what in ("train", "repair") else ():
            seen[run["shard"], run["order"]] = entry.data["seen"]
    served = deletion.served(store.surviving())
    return tuple(
        (2 * shard + part, seen[shard, int(order)])
        for shard, (order, depth) in enumerate(zip(served.order, served.depth, strict=True))
        for part in ORDERS[int(order)][: int(depth)]
    )


def inspect(folder: Path, acked: dict[str, int], reference) -> list[str]:
    """What is wrong with a store, opened anew."""
    facts, store = Facts(folder), service.Service(folder)
    problems = list(facts.problems(reference))
    lost = sorted(set(acked) - set(store.deleted))
    if lost:
        problems.append(f"acknowledged and not deleted: {lost}")
    if store.deleted != facts.deleted:
        problems.append(f"the store has {store.deleted} deleted, the ledger {facts.deleted}")
    if store.surviving().tolist() != facts.left():
        problems.append(f"stages left are {store.surviving().tolist()}, not {facts.left()}")
    for at, seen in stages(store):
        bad = [name for name in acked if place(name) == at and facts.deleted.get(name, seen) > seen]
        if bad:
            problems.append(f"slice {at} is served, of which {bad} were deleted")
    store.verify()
    return problems
