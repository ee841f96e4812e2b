"""The files of a store that never change, and what they say; read without JAX.

plan.json              the plan and the network; its hash is the ledger's first entry
base/HASH.npz          the frozen base, see `predictor.Weights`
examples.json          ids, the groups that keep copies of one fact in one slice, and hashes
orders/NUMBER.npz      a generation of an order of a shard, see `predictor.Weights`
ledger.jsonl           see `ledger`
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core.disk import DamagedError, replacing
from jaxunlearn.core.readers import parse_json, reading
from jaxunlearn.exact.plan import Plan, recipe_of


class Files:
    """What a store holds, read from its files.

    Attributes:
        folder: folder of the store.
        digest: hash of plan.json.
        plan: the plan.
        network: record of the network, see `sliceable.config_of`.
        ids: row of every example, by id.
        groups: group of every row.
        digests: hash of every row, see `examples.row_digests`.
        places: slice of every row, int [n], see `place_of`.
        source: origin of the examples, see `service.create`.
        configuration: what decided bits when it was made, see `core.configuration`; None in stores
            of earlier versions.
        base: name of the frozen base, its hash as a tree.

    Raises:
        DamagedError: a file is not what it was; it is named.
    """

    def __init__(self, folder: Path, digest: str):
        """Reads a store's plan, whose file has this hash, and all else that it names."""
        self.folder, self.digest = folder, digest
        with reading(folder / "plan.json", DamagedError):
            record = _read_json(folder / "plan.json", digest)
            orders = tuple(tuple(map(tuple, shard)) for shard in record["plan"]["orders"])
            recipe = recipe_of(record["plan"]["recipe"])
            self.plan = Plan(**record["plan"] | {"orders": orders, "recipe": recipe})
            self.network: dict[str, Any] = record["network"]
            self.source: dict[str, Any] | None = record["source"]
            self.configuration: dict[str, Any] | None = record.get("configuration")
            self.base: str = record["base"]
            self._base_digest = record["base_file"]
        with reading(folder / "examples.json", DamagedError):
            examples = _read_json(folder / "examples.json", record["examples"])
            self.ids = {name: i for i, name in enumerate(examples["ids"])}
            self.groups: list[str] = examples["groups"]
            self.digests: list[str] = examples["sha256"]
            self.places = np.array([place_of(self.plan, group) for group in self.groups])
            if not len(self.ids) == len(self.groups) == len(self.digests):
                raise ValueError("ids, groups and sha256 are not equally many")

    def place(self, name: str) -> int:
        """Number a L + s of slice s of shard a, which holds an example."""
        return int(self.places[self.ids[name]])

    def size(self) -> int:
        """Bytes of all files; what another process removes meanwhile is not counted."""
        total = 0
        for file in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
        return total

    def check(self) -> None:
        """Reads the plan, the examples' names and the base again; raises a DamagedError."""
        Files(self.folder, self.digest)
        file = self.folder / "base" / f"{self.base}.npz"
        if not file.exists() or file_digest(file) != self._base_digest:
            raise DamagedError(f"{file} is damaged: it is not what the plan says")


def place_of(plan: Plan, group: str) -> int:
    """Number a L + s of slice s of shard a: a hash of the group, whatever else is in the data."""
    word = hashlib.sha256(group.encode()).digest()[:8]
    return int.from_bytes(word, "big") % (plan.n_shards * plan.n_slices)


def check_id(name: Any) -> None:
    """Raises a ValueError for what cannot be an id."""
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"id is {name!r}; a printable text without blanks at its ends is needed")


def digest_of(value: Any) -> str:
    """The hash of something JSON-like."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_json(path: Path, value: Any) -> str:
    """Writes a file; returns its hash."""
    with replacing(path) as file:
        file.write(json.dumps(value).encode())
    return file_digest(path)


def _read_json(path: Path, digest: str) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedError(f"{path} is damaged (it has another hash)")
    return parse_json(content, path, DamagedError)
