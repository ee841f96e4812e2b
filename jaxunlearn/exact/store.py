"""The files of a store, and what they say: all that never changes, and who may read what.

plan.json              the plan and the network; its hash is the ledger's first entry
base/HASH.npz          the frozen base
examples.json          ids, the groups that keep copies of one fact in one slice, and hashes
orders/NUMBER.npz      a generation of an order of a shard: one adapter, a head for each stage
ledger.jsonl           see `ledger`
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxunlearn.core import checkpoint
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError, replacing, sync_folder
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import prefixes, sliceable
from jaxunlearn.exact.ledger import Ledger
from jaxunlearn.exact.plan import Plan, recipe_of
from jaxunlearn.nn.images import vit
from jaxunlearn.nn.language import decoder

Config: TypeAlias = vit.Config | decoder.Config
Examples: TypeAlias = dict[str, Any]  # arrays [n, ...]: `x`, and what the network needs beside it


def place_of(plan: Plan, group: str) -> int:
    """a L + s for slice s of shard a: a hash of the id, whatever else is in the data."""
    word = hashlib.sha256(group.encode()).digest()[:8]
    return int.from_bytes(word, "big") % (plan.n_shards * plan.n_slices)


def network_of(config: Config) -> sliceable.Network:
    """The network that a config describes."""
    if isinstance(config, vit.Config):
        return sliceable.of_vit(config)
    return sliceable.of_decoder(config)


def lay_out(
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
) -> None:
    """Writes the files of a new store; see `service.create`."""
    folder, ids = Path(folder), list(ids)
    groups = ids if groups is None else list(groups)
    check_new(folder, plan, config, ids, groups)
    check_examples(config, examples, len(ids))
    # Under another name first: after a kill there is a whole store, or none.
    new = folder.with_name(f".{folder.name}.new")
    new.mkdir(parents=True, exist_ok=True)
    with _locked(new):
        for left in new.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        _write_store(new, plan, config, base, ids, groups, examples, source, who)
        new.replace(folder)
    sync_folder(folder.absolute().parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"another process makes {folder} into a store; wait for it") from error
    finally:
        os.close(place)


def _write_store(new, plan, config, base, ids, groups, examples, source, who) -> None:
    stored = checkpoint.store_shared(new / "base", base)
    names = {"ids": ids, "groups": groups, "sha256": _row_digests(network_of(config), examples)}
    record = {
        "plan": dataclasses.asdict(plan),
        "network": {"kind": _KINDS[type(config)]} | dataclasses.asdict(config),
        "base": stored,
        "base_file": _file_digest(new / "base" / f"{stored}.npz"),
        "examples": _write_json(new / "examples.json", names),
        "source": source,
    }
    digest = _write_json(new / "plan.json", record)
    ledger = Ledger(new / "ledger.jsonl")
    with ledger.writing():
        ledger.append("plan", {"plan": digest, "examples": len(ids)}, who)


def check_new(folder: Path, plan: Plan, config: Config, ids: list[str], groups: list[str]) -> None:
    """Raises a ValueError where `lay_out` cannot make a store."""
    prefixes.check_plan(network_of(config), plan)
    if plan.recipe.augment and not isinstance(config, vit.Config):
        raise ValueError(f"augment is {list(plan.recipe.augment)}; it is for images, not for texts")
    _check_ids(ids, groups)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder {folder} is a file or holds something already; choose another")
    places = np.array([place_of(plan, group) for group in groups])
    prefixes.arrange(plan, {"y": np.zeros(len(ids))}, places)  # raises if a slice is too full


def check_examples(config: Config, examples: Examples, n: int) -> None:
    """Raises a ValueError unless there are n rows of every array, of the kind that is read."""
    for name in ("x", *network_of(config).arrays):
        found = len(examples[name]) if name in examples else "no"
        if found != n:
            raise ValueError(f"examples have {found} rows of {name}; there are {n} ids")
    check_inputs(config, examples["x"])
    if isinstance(config, vit.Config):
        labels, n_classes = np.asarray(examples["y"]), config.n_classes
        if labels.ndim != 1 or not 0 <= labels.min() <= labels.max() < n_classes:
            raise ValueError(
                f"y has shape {list(labels.shape)} and values {labels.min()} to "
                f"{labels.max()}; [n] with 0 to {n_classes - 1} is needed"
            )


def check_inputs(config: Config, x: Any) -> None:
    """Raises a ValueError if `x` is nothing that the network reads."""
    shape, kind = np.shape(x), np.asarray(x).dtype.kind
    found = f"x is {np.asarray(x).dtype}{list(shape)}"
    if isinstance(config, vit.Config):
        if shape[1:] != config.image or len(shape) != 4 or kind != "f":
            image = ", ".join(map(str, config.image))
            raise ValueError(f"{found}; floats [n, {image}] are needed")
        if not np.isfinite(x).all():
            raise ValueError(f"{found} and holds NaN or infinity; finite values are needed")
    elif len(shape) != 2 or shape[1] > config.context or kind not in "iu":
        raise ValueError(f"{found}; integers [n, at most {config.context}] are needed")


class Files:
    """What a store holds, read from its files.

    Attributes:
        folder: of the store.
        plan: the plan.
        config: of the network.
        network: the network.
        ids: the row of every example, by id.
        groups: of every row.
        places: int [n], the slice of every row, see `place_of`.
        source: see `create`.

    Raises:
        DamagedError: a file is not what it was; it is named.
    """

    def __init__(self, folder: Path, digest: str):
        """Reads a store's plan, whose file has this hash, and all else that it names."""
        self.folder, self.digest = folder, digest
        record = _read_json(self.folder / "plan.json", digest)
        orders = tuple(tuple(map(tuple, own)) for own in record["plan"]["orders"])
        recipe = recipe_of(record["plan"]["recipe"])
        self.plan = Plan(**record["plan"] | {"orders": orders, "recipe": recipe})
        self.config = _config_of(record["network"])
        self.network = network_of(self.config)
        examples = _read_json(self.folder / "examples.json", record["examples"])
        self.ids = {name: i for i, name in enumerate(examples["ids"])}
        self.groups: list[str] = examples["groups"]
        self._digests: list[str] = examples["sha256"]
        self.places = np.array([place_of(self.plan, group) for group in self.groups])
        self.source = record["source"]
        self._base, self._base_file = record["base"], record["base_file"]
        self._orders = BlockStore(self.folder / "orders")

    def place(self, name: str) -> int:
        """a L + s for slice s of shard a, which holds an example."""
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
        file = self.folder / "base" / f"{self._base}.npz"
        if not file.exists() or _file_digest(file) != self._base_file:
            raise DamagedError(f"{file} is damaged: it is not what the plan says")

    def base(self) -> Tree:
        """The frozen base, checked against its hash."""
        try:
            return checkpoint.load_shared(self.folder / "base", self._base)
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename} is not there") from error

    def write_order(self, shard: int, order: int, generation: int, weights: Any) -> str:
        """Writes one generation of an order; returns the hash of its file."""
        number = self._number(shard, order, generation)
        self._orders.write(number, weights)
        return _file_digest(self._orders.file(number))

    def read_order(self, shard: int, order: int, generation: int, digest: str) -> Any:
        """Reads one generation of an order; raises a DamagedError if it has another hash."""
        number = self._number(shard, order, generation)
        file = self._orders.file(number)
        try:
            if _file_digest(file) != digest:
                raise DamagedError(f"{file} is damaged: it is not what the ledger says")
            return self._orders.read(number)
        except FileNotFoundError as error:
            raise DamagedError(f"{file} is not there") from error

    def sweep(self, current: Iterable[tuple[int, int, int]]) -> None:
        """Removes all files of orders but the current generations, and what killed runs left.

        These hold what was learned from slices that may have been deleted since.

        Args:
            current: shard, order and generation of every order.
        """
        keep = {self._orders.file(self._number(*own)).name for own in current}
        folder = self._orders.path
        for file in folder.iterdir() if folder.exists() else ():
            if file.name not in keep:
                file.unlink()
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def rows(
        self, examples: Examples, ids: Sequence[str] | None, gone: Iterable[str]
    ) -> tuple[Examples, np.ndarray]:
        """The examples that are not gone, in the store's order, and the slice of each.

        Args:
            examples: arrays with a row for each id; rows of other ids are not read.
            ids: of the rows; by default all of the store, in its order.
            gone: ids without whose rows it must be possible to train; they are not read either.

        Raises:
            ValueError: a row is missing, or is not what the store was made with; it is named.
        """
        given, gone = list(self.ids) if ids is None else list(ids), set(gone)
        wanted = [name for name in self.ids if name not in gone]
        if not wanted:
            raise ValueError("all examples of the store were deleted: there is nothing to train on")
        check_examples(self.config, examples, len(given))
        at = {name: row for row, name in enumerate(given)}
        if len(at) < len(given):
            raise ValueError(f"ids has {len(given) - len(at)} that are there twice")
        for name in wanted:
            if name not in at:
                raise ValueError(f"example {name!r} is missing, and it has not been deleted")
        arrays = ("x", *self.network.arrays)
        chosen = np.array([at[name] for name in wanted], np.int64)
        own = {name: np.asarray(examples[name])[chosen] for name in arrays}
        numbers = [self.ids[name] for name in wanted]
        found = _row_digests(self.network, own)
        for name, number, digest in zip(wanted, numbers, found, strict=True):
            if digest != self._digests[number]:
                kinds = ", ".join(f"{array} is {leaf.dtype}" for array, leaf in own.items())
                raise ValueError(f"example {name!r} is not what the store was made with ({kinds})")
        return own, self.places[numbers]

    def _number(self, shard: int, order: int, generation: int) -> int:
        per_generation = self.plan.n_shards * self.plan.budget
        return (generation * per_generation) + shard * self.plan.budget + order


def check_id(name: Any) -> None:
    """Raises a ValueError for what cannot be an id."""
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"id is {name!r}; a printable text without blanks at its ends is needed")


def digest_of(value: Any) -> str:
    """The hash of something JSON-like."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_KINDS = {vit.Config: "vit", decoder.Config: "decoder"}


def _config_of(record: dict[str, Any]) -> Config:
    fields: dict[str, Any] = dict(record)
    if fields.pop("kind") == "vit":
        fields["image"] = tuple(fields["image"])
        return vit.Config(**fields)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = decoder.RopeScaling(**fields["rope_scaling"])
    fields["eos"] = tuple(fields["eos"])
    return decoder.Config(**fields)


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


def _row_digests(network: sliceable.Network, examples: Examples) -> list[str]:
    """A hash of every example."""
    arrays = {name: np.asarray(examples[name]) for name in ("x", *network.arrays)}
    kinds = {name: (str(array.dtype), array.shape[1:]) for name, array in arrays.items()}
    head = hashlib.sha256(repr(kinds).encode())
    found = []
    for row in zip(*arrays.values(), strict=True):
        digest = head.copy()
        for part in row:
            digest.update(np.asarray(part).tobytes())
        found.append(digest.hexdigest())
    return found


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write_json(path: Path, value: Any) -> str:
    """Writes a file; returns its hash."""
    with replacing(path) as file:
        file.write(json.dumps(value).encode())
    return _file_digest(path)


def _read_json(path: Path, digest: str) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedError(f"{path} is damaged (it has another hash)")
    return json.loads(content)
