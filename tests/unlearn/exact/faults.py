"""Faults that a store must outlive: processes killed anywhere, writers at once, a full disk.

    python tests/unlearn/exact/faults.py --verb delete --trials 100 --seed 0 --json summary.json

Whatever happens: no acknowledged deletion is lost, no deleted slice is served, nothing is served
that no whole run wrote, and the verb that was killed can be run again. What a store has to serve is
worked out here from its files alone, with code of its own (`Facts`).

One process has imported everything and forks a child for every trial, without ever starting a JAX
backend itself; another one ("the bench") has one, which stays warm. Most of the children that train
take the results of compiled lanes from a recording of it: tracing would be nearly all of their
life, and hardly a kill would meet a file that is being written. A share of them computes for real.

    delete  requests one by one; the process is killed. Some trials with a reader that notes when it
            served what, some with a second process that deletes meanwhile.
    train   a first training; killed up to three times in a row, then finished and compared, bit by
    repair  bit, with a run that was never killed. In half of the trials a deletion comes meanwhile.
    race    processes that delete the same examples at once.
    disk    all three with ENOSPC at every step that can raise it, with a limit on the size of
            files, and on a small file system that is full (where one may be mounted).

The verbs that kill do so at random moments, and besides before and half way through every single
step on the file system (`Steps`).
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import json
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax._src import lru_cache, xla_bridge

from jaxunlearn.core import ensemble, tree
from jaxunlearn.nn import vit
from jaxunlearn.unlearn.exact import deletion, orders, plan, service

CONFIG = vit.Config((4, 4, 1), 2, width=8, n_layers=2, n_heads=2, mlp_width=16, n_classes=2)
RECIPE = plan.Recipe(rank=2, alpha=2.0, learning_rate=1e-2, epochs=1, batch_size=4, dropout=0.0)
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


# What a store must serve


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
        own = entry.pop("checksum")
        text = json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        good = hashlib.sha256(text.encode()).hexdigest() == own
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
        return own

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
    found = list(facts.problems(reference))
    lost = sorted(set(acked) - set(store.deleted))
    if lost:
        found.append(f"acknowledged and not deleted: {lost}")
    if store.deleted != facts.deleted:
        found.append(f"the store has {store.deleted} deleted, the ledger {facts.deleted}")
    if store.surviving().tolist() != facts.left():
        found.append(f"stages left are {store.surviving().tolist()}, not {facts.left()}")
    for at, seen in stages(store):
        bad = [name for name in acked if place(name) == at and facts.deleted.get(name, seen) > seen]
        if bad:
            found.append(f"slice {at} is served, of which {bad} were deleted")
    store.verify()
    return found


# Processes


class Child:
    """A forked process that runs `work(tell, *arguments)`; what it tells is heard here.

    Attributes:
        said: of every message so far its time (`time.monotonic_ns`), a word, and what belongs to
            it. The last word of a process that failed is "failed".
    """

    def __init__(self, work: Callable[..., None], *arguments: Any):
        if xla_bridge.backends_are_initialized():
            raise RuntimeError("a process with a JAX backend has threads, and must not be forked")
        self.said: list[list[Any]] = []
        self._source, sink = os.pipe()
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            _inside(sink, work, arguments)
        os.close(sink)

    def hear(self, number: int) -> bool:
        """Waits until so many messages have come; False if the process ends before."""
        while len(self.said) < number:
            if not select.select([self._source], [], [], PATIENCE)[0]:
                self.strike()
                raise TimeoutError(f"a process is stuck after {self.said[-1:]}")
            part = os.read(self._source, 65536)
            if not part:
                return False
            *lines, self._rest = (self._rest + part).split(b"\n")
            self.said += [json.loads(line) for line in lines]
        return True

    def strike(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> list[list[Any]]:
        """Waits for the end of the process; everything that it said."""
        self.hear(sys.maxsize)
        os.close(self._source)
        os.waitpid(self.pid, 0)
        return self.said

    def finish(self) -> list[list[Any]]:
        """See `end`; for a process that nobody kills and that must not fail."""
        said = self.end()
        if not said or said[-1][1] != "end":
            raise RuntimeError(said[-1][2] if said else "a process said nothing")
        return said


def _inside(sink: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody is left behind

    def tell(*words: Any) -> None:
        os.write(sink, json.dumps([time.monotonic_ns(), *words]).encode() + b"\n")

    try:
        work(tell, *arguments)
        tell("end")
    except BaseException:
        tell("failed", traceback.format_exc())
    finally:
        os._exit(0)  # nothing of the parent's is to be flushed or closed twice


class Bench:
    """The process that computes; one question after the other."""

    def __init__(self, work: Path):
        source, self._questions = os.pipe()
        self._child = Child(_answer, work, source, self._questions)
        os.close(source)

    def ask(self, *words: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        os.write(self._questions, json.dumps(words).encode() + b"\n")
        if meanwhile:
            meanwhile()
        if not self._child.hear(len(self._child.said) + 1) or self._child.said[-1][1] == "failed":
            raise RuntimeError(f"{words}: {self._child.said[-1][2]}")
        return self._child.said[-1][2]

    def close(self) -> None:
        os.close(self._questions)
        self._child.end()


def _answer(tell: Tell, work: Path, source: int, questions: int) -> None:
    os.close(questions)
    start_jax(work)
    answers = {"make": make, "reference": run_anew, "finish": finish}
    with os.fdopen(source) as lines, mock.patch.object(ensemble, "lanes", recorder(work)):
        for line in lines:
            what, *arguments = json.loads(line)
            try:
                tell("answer", answers[what](work, *arguments))
            except Exception:
                tell("failed", traceback.format_exc())


def start_jax(work: Path, *, writes: bool = True) -> None:
    """A cache that a process which is killed must only read: JAX does not write to it at once."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(work / "jax"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not writes:
        lru_cache.LRUCache.put = lambda self, key, value: None


# What the bench does


def make(work: Path) -> None:
    """Stores to copy: not trained; trained; with deletions that a repair mends."""
    base = jax.device_get(vit.vit(CONFIG).init(jax.random.key(0))[0])
    service.create(work / "train", PLAN, CONFIG, base, IDS, EXAMPLES, who="faults")
    if tuple(PLAN.orders) != (ORDERS, ORDERS):
        raise ValueError("ORDERS are not those of the plan")
    shutil.copytree(work / "train", work / "delete")
    service.Service(work / "delete").train(EXAMPLES)
    shutil.copytree(work / "delete", work / "repair")
    service.Service(work / "repair").delete(HURT)


def run_anew(work: Path, gone: list[str]) -> dict[str, str]:
    """Bits of all orders when these examples are deleted first, and nothing is killed."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        shutil.copytree(work / "train", folder, dirs_exist_ok=True)
        store = service.Service(folder)
        if gone:
            store.delete(gone)
        store.train(EXAMPLES)
        return {
            f"{shard} {order}": bits(file)
            for (shard, order), (file, _, _) in Facts(Path(folder)).runs.items()
        }


def finish(work: Path, folder: str, verb: str) -> int:
    """Runs a verb until every order is whole; how many prefixes it had not to train again."""
    store, first = service.Service(folder), {}
    for _ in range(3):  # again where deletions came while the killed run trained, or this one
        getattr(store, verb)(
            EXAMPLES, progress=lambda level, done, _: first.setdefault(level, done)
        )
        if store.surviving().min() == 2:
            return sum(first.values())
    raise ValueError(f"stages left are {store.surviving().tolist()}")


def recorder(work: Path) -> Callable[..., Any]:
    """`ensemble.lanes`, whose results are written down."""
    real = ensemble.lanes

    def lanes(fn: Any, mesh: Any, mode: str = "vmap") -> Any:
        def compiled(shared: Any, members: Any) -> Callable[..., Any]:
            program = real(fn, mesh, mode).compiled(shared, members)

            def run(*arguments: Any) -> Any:
                results = jax.device_get(program(*arguments))
                file = work / "recording" / tree.digest(arguments)
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(pickle.dumps(results))
                return results

            return run

        return mock.Mock(compiled=compiled)

    return lanes


def player(work: Path) -> Callable[..., Any]:
    """`ensemble.lanes`, whose results are taken from the recording where they are there."""
    real = ensemble.lanes

    def lanes(fn: Any, mesh: Any, mode: str = "vmap") -> Any:
        def compiled(shared: Any, members: Any) -> Callable[..., Any]:
            file = work / "recording" / tree.digest((shared, members))
            if not file.exists():
                return real(fn, mesh, mode).compiled(shared, members)
            results = pickle.loads(file.read_bytes())
            return lambda *arguments: results

        return mock.Mock(compiled=compiled)

    return lanes


# Steps on the file system


def die(path: str | None) -> None:
    del path
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(path: str | None) -> None:
    """As the system says it: with a name where the call has one."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *((path,) if path else ()))


class Steps:
    """Counts what a process does to the files of a store, and acts at one of these steps.

    Attributes:
        names: of the steps so far, and whether they can be done by halves.
    """

    def __init__(
        self, folder: Path, act: Callable[[str | None], None] = die, at: int = -1, age: str = ""
    ):
        self.folder, self.act, self.at, self.age = str(folder), act, at, age
        self.names: list[tuple[str, bool]] = []

    def do(
        self,
        name: str,
        call: Callable[[], Any],
        half: Callable[[], Any] | None = None,
        path: str | None = None,
    ) -> Any:
        self.names.append((name, half is not None))
        if len(self.names) - 1 == self.at:
            if self.age == "half" and half is not None:
                half()
            if self.age == "after":
                call()
            self.act(path)
        return call()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            watched = [(os, name) for name in ("fsync", "replace", "unlink", "rmdir", "mkdir")]
            for module, name in [*watched, (fcntl, "flock")]:
                stack.enter_context(mock.patch.object(module, name, self._wrapped(module, name)))
            stack.enter_context(mock.patch.object(Path, "open", self._open(Path.open)))
            yield

    def _wrapped(self, module: Any, name: str) -> Callable[..., Any]:
        real = getattr(module, name)

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            own = functools.partial(real, first, *rest, **options)
            path = None if name in ("fsync", "flock") else str(first)
            return self.do(name, own, path=path) if self._is_mine(first, options) else own()

        return call

    def _is_mine(self, first: Any, options: dict[str, Any]) -> bool:
        if options.get("dir_fd") is not None:  # `shutil.rmtree`
            first = options["dir_fd"]
        first = first.fileno() if hasattr(first, "fileno") else first
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        return path.startswith(self.folder)

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            own = functools.partial(real, path, mode, *rest, **options)
            if not set(mode) & set("wa+") or not self._is_mine(path, {}):
                return own()
            return Watched(
                self.do("open", own, path=str(path)), self, path, options.get("buffering") == 0
            )

        return call


class Watched:
    """A file whose changes are steps; writes to a buffer are none, but emptying it is."""

    def __init__(self, file: Any, steps: Steps, path: Path, raw: bool):
        self._file, self._steps, self._path, self._raw = file, steps, path, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, data: Any) -> int:
        own = functools.partial(self._file.write, data)
        if not self._raw:
            return own()
        return self._steps.do("write", own, lambda: self._file.write(data[: len(data) // 2]))

    def truncate(self, size: int) -> int:
        return self._steps.do("truncate", functools.partial(self._file.truncate, size))

    def flush(self) -> None:
        def half() -> None:
            self._file.flush()
            os.truncate(self._path, self._path.stat().st_size // 2)

        self._steps.do("flush", self._file.flush, half)

    def close(self) -> None:
        self._steps.do("close", self._file.close)


Case = tuple[int, str]  # a step, and when


def cases_of(names: list[tuple[str, bool]]) -> list[Case]:
    """Before and half way through every step; after one is before the next."""
    cases = [
        (i, age) for i, (_, halves) in enumerate(names) for age in ("before", "half")[: 1 + halves]
    ]
    return [*cases, (len(names) - 1, "after")]


def some(items: list[Any], limit: int, rng: np.random.Generator) -> list[Any]:
    """At most so many of them; -1 for all."""
    if not 0 <= limit < len(items):
        return items
    return [items[i] for i in sorted(rng.choice(len(items), limit, replace=False))]


# What is killed


def delete(tell: Tell, folder: Path, requests: list[list[str]], case: Case | None = None) -> None:
    """Deletes and acknowledges; dies at a case, if one is given."""
    store, steps = service.Service(folder), Steps(folder, die, *(case or ()))
    with steps.watching() if case else contextlib.nullcontext():
        tell("begin")
        for ids in requests:
            done = store.delete(ids)
            tell("ack", [[outcome.example, outcome.repeated] for outcome in done])
    if xla_bridge.backends_are_initialized():
        raise RuntimeError("a deletion started JAX")
    tell("steps", steps.names)


def train(
    tell: Tell, folder: Path, verb: str, work: Path, real: bool, case: Case | None = None
) -> None:
    """Trains or repairs; see `delete`."""
    start_jax(work, writes=False)
    store, steps = service.Service(folder), Steps(folder, die, *(case or ()))
    with contextlib.ExitStack() as stack:
        if not real:
            stack.enter_context(mock.patch.object(ensemble, "lanes", player(work)))
        if case:
            stack.enter_context(steps.watching())
        tell("begin")
        getattr(store, verb)(EXAMPLES, progress=lambda level, done, _: tell("level", level, done))
    tell("steps", steps.names)


def train_between(tell: Tell, folder: Path, verb: str, work: Path, name: str) -> None:
    """Trains or repairs, and deletes an example after the run has begun and before it ends."""
    start_jax(work, writes=False)
    store, late = service.Service(folder), [name]

    def progress(*_: Any) -> None:
        if late:
            service.Service(folder).delete([late.pop()])
            tell("ack", [[name, False]])

    with mock.patch.object(ensemble, "lanes", player(work)):
        getattr(store, verb)(EXAMPLES, progress=progress)


def acks(said: list[list[Any]]) -> dict[str, int]:
    """When which id was acknowledged."""
    return {name: own[0] for own in said if own[1] == "ack" for name, _ in own[2]}


# What is not


def compete(tell: Tell, folder: Path, requests: list[list[str]], gate: int) -> None:
    """Deletes, as soon as all may."""
    store = service.Service(folder)
    tell("begin")
    os.read(gate, 1)
    for ids in requests:
        done = store.delete(ids)
        tell("ack", [[outcome.example, outcome.repeated] for outcome in done])


def read(tell: Tell, folder: Path, stop: int) -> None:
    """Looks at the ledger as `predict` does, and notes when it last served what."""
    store, last, looks = service.Service(folder), {}, 0
    tell("begin")
    while not select.select([stop], [], [], 0)[0]:
        begun = time.monotonic_ns()
        store.refresh()
        last[stages(store)] = begun
        looks += 1
        time.sleep(0.0003)
    tell("read", looks, list(last.items()))


class Reader:
    """A process that reads all the while."""

    def __init__(self, folder: Path):
        source, self._stop = os.pipe()
        self._child = Child(read, folder, source)
        os.close(source)
        self._child.hear(1)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        self._child.strike()  # without effect where it has ended
        self._child.end()
        os.close(self._stop)

    def problems(self, acked: dict[str, int], deleted: dict[str, int]) -> tuple[int, list[str]]:
        """Ends it; how often it looked, and what it should not have served when it did."""
        os.write(self._stop, b"x")
        self._child.hear(sys.maxsize)
        said = self._child.said
        if said[-1][1] != "end":
            return 0, [f"the reader failed: {said[-1][2]}"]
        return said[-2][2], [
            f"slice {at} was served {begun - when} ns after {name} in it was deleted"
            for served, begun in said[-2][3]
            for at, seen in served
            for name, when in acked.items()
            if place(name) == at and deleted.get(name, sys.maxsize) > seen and begun > when
        ]


# A full disk


def suffer(tell: Tell, work: Path, verb: str, limit: int, seed: int) -> None:
    """Runs a verb under every fault; tells which, in which store, and what was wrong."""
    small = Path(tempfile.mkdtemp(dir=work))
    mounted = mount(small)  # before there are threads, which would not see it
    start_jax(work)
    rng = np.random.default_rng(seed)
    with mock.patch.object(ensemble, "lanes", player(work)):
        dry = Steps(copied(work, verb))
        store = service.Service(dry.folder)  # before the steps are counted, as in `survive`
        with dry.watching():
            act(store, verb)
        for name, fault in some(list(faults_of(verb, dry.names)), limit, rng):
            folder = copied(work, verb)
            tell("case", name, str(folder), *survive(verb, folder, fault(folder)))
        for free in some(list(range(0, 15 * 4096, 4096)) if mounted else [], limit, rng):
            tell("case", f"a small file system, {free}", *on_small(work, small, verb, free))


def on_small(work: Path, small: Path, verb: str, free: int) -> tuple[str, bool, list[str]]:
    """See `survive`; the store is brought to where other processes can see it."""
    folder = copied(work, verb, small)
    if verb == "delete":
        fill_page(folder, slack=free // 40)
        free = 0
    outcome = survive(verb, folder, full(small, free))
    kept = shutil.copytree(folder, tempfile.mkdtemp(dir=work), dirs_exist_ok=True)
    shutil.rmtree(folder)
    return kept, *outcome


Fault = Callable[[Path], contextlib.AbstractContextManager[None]]


def faults_of(verb: str, names: list[tuple[str, bool]]) -> Iterator[tuple[str, Fault]]:
    for at, age in cases_of(names):
        if names[at][0] in FAILING and age != "after":
            yield (
                f"no space {age} step {at}, {names[at][0]}",
                lambda folder, at=at, age=age: Steps(folder, no_space, at, age).watching(),
            )
    for size in (0, 1, 100, *range(400, 4000, 400)):
        yield f"files of {size} bytes", lambda folder, size=size: limited(size)
    for more in (0, 1, 100, 300) if verb == "delete" else ():
        yield (
            f"{more} bytes more in the ledger",
            lambda folder, more=more: limited((folder / "ledger.jsonl").stat().st_size + more),
        )


def copied(work: Path, verb: str, where: Path | None = None) -> Path:
    return Path(
        shutil.copytree(work / verb, tempfile.mkdtemp(dir=where or work), dirs_exist_ok=True)
    )


def act(store: service.Service, verb: str) -> bool | None:
    """The verb itself; of a deletion, whether it was repeated."""
    if verb == "delete":
        return store.delete([IDS[5]])[0].repeated
    getattr(store, verb)(EXAMPLES)
    return None


def survive(
    verb: str, folder: Path, fault: contextlib.AbstractContextManager[None]
) -> tuple[bool, list[str]]:
    """Runs a verb under a fault and once more without; whether it raised, and what was wrong."""
    store, before = service.Service(folder), (folder / "ledger.jsonl").read_bytes()
    error, found = None, []
    with fault:
        try:
            act(store, verb)
        except OSError as raised:
            error = raised
        except Exception:
            found.append(traceback.format_exc())
    after = (folder / "ledger.jsonl").read_bytes()
    if error is not None and (not after.startswith(before) or b"\n" in after[len(before) :]):
        found.append(f"{error!r}, but the ledger has changed")
    if error is not None and str(folder) not in str(error):
        found.append(f"{error!r} names no file")
    try:
        if act(store, verb) is (error is not None):
            found.append(
                f"after {error!r} the deletion was repeated, or without an error it was not"
            )
    except Exception:
        found.append(traceback.format_exc())
    return error is not None, found


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond a size; Python ignores SIGXFSZ, so that writes are cut or fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mount(folder: Path) -> bool:
    """A file system of 1 MB that this process alone sees; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, 0x4000 | 1 << 18  # CLONE_NEWNS, MS_REC | MS_PRIVATE
    return (
        libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m") == 0
    )


@contextlib.contextmanager
def full(folder: Path, free: int) -> Iterator[None]:
    """So many bytes are free on the file system of a folder."""
    filler, room = folder / "filler", os.statvfs(folder)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - free))
    try:
        yield
    finally:
        filler.unlink()


def fill_page(folder: Path, slack: int) -> None:
    """Makes the ledger end so many bytes before a page, where a file system needs space again."""
    store, file = service.Service(folder), folder / "ledger.jsonl"
    start = file.stat().st_size
    store.delete([IDS[0]])
    middle = file.stat().st_size
    store.delete([IDS[1]], who="x" * (-(2 * middle - start + slack) % 4096))


# Trials


class Harness:
    """Trials on copies of three stores, in one folder.

    Attributes:
        count: what happened how often.
        violations: what must not happen.
    """

    def __init__(self, work: Path, seed: int, real: float):
        self.work, self.seed, self.real = work, seed, real
        self.count: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.bench = Bench(work)
        self.bench.ask("make")
        self.reference = functools.cache(lambda gone: self.bench.ask("reference", gone))
        for gone in ((), HURT, *((name,) for name in LATE), *((*HURT, name) for name in LATE)):
            self.reference(tuple(sorted(gone)))  # so that it is recorded

    def run(self, verb: str, trials: int, steps: int) -> dict[str, Any]:
        """One verb; see the module."""
        self.count.clear()
        self.violations, start = [], time.monotonic()
        rng = np.random.default_rng([self.seed, VERBS.index(verb)])
        if verb == "disk":
            for own in ("delete", "train", "repair"):
                self._disk(own, steps)
        elif verb == "race":
            for _ in range(trials):
                self._race(rng)
        else:
            self._kill(verb, rng, trials, steps)
        seconds = round(time.monotonic() - start, 1)
        found = {"seed": self.seed, "seconds": seconds, "violations": self.violations}
        return found | dict(sorted(self.count.items()))

    @contextlib.contextmanager
    def trial(self, verb: str, what: str) -> Iterator[tuple[Path, list[str]]]:
        """A copy of a store and a list for what is wrong; the copy is kept if anything is."""
        folder, found = copied(self.work, verb), []
        try:
            yield folder, found
        except Exception:
            found.append(traceback.format_exc())
        self.count["trials"] += 1
        self.close(what, folder, found)
        if self.count["trials"] % 20 == 0:
            print(f"{what}: {self.count['trials']} trials", file=sys.stderr, flush=True)

    def close(self, what: str, folder: Path, found: list[str]) -> None:
        self.violations += [f"{what}, {folder}: {text}" for text in found]
        if found:
            print(what, *found, sep="\n", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)

    # Kills

    def _kill(self, verb: str, rng: np.random.Generator, trials: int, steps: int) -> None:
        once, options = (self._delete, [None]) if verb == "delete" else (self._train, [False])
        if verb != "delete" and self.real:
            options.append(True)
        said = {real: self.unkilled(verb, rng, real) for real in options}
        names = next(own[2] for own in said[options[0]] if own[1] == "steps")
        marks = {
            real: np.array([own[0] for own in words if own[1] != "steps"]) / 1e9
            for real, words in said.items()
        }
        while self.count["kills inside"] < trials and self.count["trials"] < 2 * trials + 20:
            real = options[-1] if rng.random() < self.real else options[0]
            once(verb, rng, real, functools.partial(self.strike, marks[real], rng))
        for case in some(cases_of(names), steps, rng):
            once(verb, rng, options[0], self.await_death, case)
        for name in LATE if verb != "delete" else ():
            self._between(verb, name)

    def unkilled(self, verb: str, rng: np.random.Generator, real: bool | None) -> list[list[Any]]:
        """What a run says; the second one, as the first finds less in caches."""
        for _ in range(2):
            with self.trial(verb, verb) as (folder, _):
                said = Child(*self.task(folder, verb, rng, real, (-1, ""))).finish()
        self.count.clear()
        return said

    def task(self, folder: Path, verb: str, rng, real: bool | None, case: Case | None) -> tuple:
        """What a child does, for `Child`."""
        if verb == "delete":
            return delete, folder, requests_of(rng), case
        return train, folder, verb, self.work, real, case

    def strike(
        self,
        marks: np.ndarray,
        rng: np.random.Generator,
        child: Child,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Kills a process at a random moment of its work.

        Args:
            marks: when one that was not killed said what, in seconds.
            rng: draws the moment: anywhere, with more of them early, or between two messages.
            child: the process.
            meanwhile: is called some time before.
        """
        kind, at = rng.integers(10), 1
        span = marks[-1] - marks[0]
        delay = rng.uniform(0, span) if kind < 3 else span * 10 ** rng.uniform(-3, 0)
        if kind == 0:
            at = 0
        elif kind >= 5:
            gap = int(rng.integers(len(marks) - 1))
            at, delay = gap + 1, rng.uniform(0, 1.1 * (marks[gap + 1] - marks[gap]))
        child.hear(at)
        part = rng.random() if meanwhile else 1.0
        time.sleep(delay * part)
        if meanwhile:
            meanwhile()
            time.sleep(delay * (1 - part))
        child.strike()
        self.note_kill(child.end())

    def note_kill(self, said: list[list[Any]]) -> None:
        words = [" ".join(map(str, own[1:2] if own[1] == "ack" else own[1:3])) for own in said]
        words = [word for word in words if not word.startswith("steps")]
        where = "before" if not words else "after" if words[-1] == "end" else "inside"
        self.count[f"kills {where}"] += 1
        if where == "inside":
            self.count[f"kills inside, the last word was {words[-1]}"] += 1

    def await_death(self, child: Child, meanwhile: Callable[[], None] | None = None) -> None:
        """Waits for a process that kills itself at a step."""
        if meanwhile:
            meanwhile()
        if child.end()[-1][1] == "end":
            raise RuntimeError("a process that was to die at a step has not come to it")
        self.count["kills at steps"] += 1

    def _delete(self, verb: str, rng, real: bool | None, kill: Kill, case: Case | None = None):
        number = self.count["trials"]
        with (
            self.trial(verb, f"{verb} {case or ''}") as (folder, found),
            contextlib.ExitStack() as stack,
        ):
            reader = stack.enter_context(Reader(folder)) if number % 3 == 0 else None
            requests = requests_of(rng)
            other = (
                Child(delete, folder, requests_of(rng)) if number % 3 == 1 and not case else None
            )
            child = Child(delete, folder, requests, case)
            kill(child)
            self.check_said(child.said)
            acked = (acks(other.finish()) if other else {}) | acks(child.said)
            facts = self.inspect(folder, acked, found)
            if not other and any(
                0 < len(set(ids) & set(facts.deleted)) < len(ids) for ids in requests
            ):
                found.append("a request was done by halves")
            self.count["deletions acknowledged"] += len(acked)
            self.count["deletions on disk before they were acknowledged"] += len(
                set(facts.deleted) - set(acked)
            )
            self.look(reader, acked, folder, found)
            self.go_on(folder, found)

    def _train(self, verb: str, rng, real: bool, kill: Kill, case: Case | None = None) -> None:
        number = self.count["trials"]
        acked = dict.fromkeys(HURT if verb == "repair" else (), 0)
        with (
            self.trial(verb, f"{verb} {case or ''}") as (folder, found),
            contextlib.ExitStack() as stack,
        ):
            reader = stack.enter_context(Reader(folder)) if number % 3 == 0 else None
            late = LATE[number // 2 % 2] if number % 2 else None
            meanwhile = functools.partial(self.late, folder, late, acked) if late else None
            for _ in range(1 if case else 3):
                child = Child(train, folder, verb, self.work, real, case)
                kill(child, meanwhile)
                self.check_said(child.said)
                self.inspect(folder, acked, found)
                self.count["kills of runs that computed"] += bool(real)
                meanwhile = None
                if child.said and child.said[-1][1] == "end":
                    break
            self.complete(verb, rng, folder, acked, found)
            self.look(reader, acked, folder, found)
            self.go_on(folder, found)

    def _between(self, verb: str, name: str) -> None:
        """Nothing is killed; the deletion counts against what the run has trained."""
        with self.trial(verb, f"{verb}, {name} is deleted meanwhile") as (folder, found):
            said = Child(train_between, folder, verb, self.work, name).finish()
            acked = dict.fromkeys(HURT if verb == "repair" else (), 0) | acks(said)
            self.inspect(folder, acked, found)
            self.count["deletions during a run"] += 1
            self.go_on(folder, found)

    def late(self, folder: Path, name: str, acked: dict[str, int]) -> None:
        service.Service(folder).delete([name])
        acked[name] = time.monotonic_ns()
        self.count["deletions acknowledged"] += 1

    def complete(self, verb: str, rng, folder: Path, acked: dict[str, int], found: list[str]):
        """Runs the verb again, to its end; a deletion comes in every second trial."""
        facts = Facts(folder)
        lanes = len(list(folder.glob("work/*/*/[0-9]*.npz")))
        begun_anew = set(facts.deleted) != set(HURT if verb == "repair" else ())
        name = None if rng.random() < 0.5 else LATE[int(rng.integers(2))]

        def meanwhile() -> None:
            time.sleep(rng.uniform(0, 0.2))
            if name and name not in acked:
                self.late(folder, name, acked)

        taken = self.bench.ask("finish", str(folder), verb, meanwhile=meanwhile)
        if not begun_anew and not name and min(map(min, facts.left())) < 2 and taken != 2 * lanes:
            found.append(f"{lanes} lanes were on disk, but only {taken} prefixes were taken over")
        if min(map(min, Facts(folder).left())) < 2 and not name:
            found.append(f"stages left are {Facts(folder).left()} after a complete run")
        self.inspect(folder, acked, found)
        self.count["prefixes taken over"] += taken
        if list(folder.rglob(".*")) or (folder / "work").exists():
            found.append("what killed runs left is still there after a complete run")

    # Looking

    @staticmethod
    def check_said(said: list[list[Any]]) -> None:
        if said and said[-1][1] == "failed":
            raise RuntimeError(said[-1][2])

    def inspect(self, folder: Path, acked: dict[str, int], found: list[str]) -> Facts:
        facts = Facts(folder)
        self.count["torn lines"] += facts.torn
        found += inspect(folder, acked, self.reference)
        return facts

    def look(self, reader: Reader | None, acked: dict[str, int], folder: Path, found: list[str]):
        if reader is not None:
            looks, wrong = reader.problems(acked, Facts(folder).deleted)
            self.count["looks of readers"] += looks
            found += wrong

    def go_on(self, folder: Path, found: list[str]) -> None:
        """The store still deletes."""
        store = service.Service(folder)
        name = next(name for name in IDS if name not in store.deleted)
        if [store.delete([name])[0].repeated for _ in range(2)] != [False, True]:
            found.append(f"deleting {name} twice was not said to be new, then repeated")
        found += inspect(folder, {name: 0}, self.reference)

    # Others

    def _race(self, rng: np.random.Generator) -> None:
        ids = rng.choice(IDS, 12, replace=False)
        with self.trial("delete", "race") as (folder, found), Reader(folder) as reader:
            source, gate = os.pipe()
            children = [Child(compete, folder, requests_of(rng, ids), source) for _ in range(3)]
            for child in children:
                child.hear(1)
            os.write(gate, b"xxx")
            said = [child.finish() for child in children]
            os.close(source)
            os.close(gate)
            own = [pair for words in said for word in words if word[1] == "ack" for pair in word[2]]
            new = sorted(name for name, repeated in own if not repeated)
            if new != sorted(ids) or len(own) != 3 * len(ids):
                found.append(f"new were {new}, of {sorted(ids)}")
            acked = collections.ChainMap(*map(acks, said))
            self.count["deletions acknowledged"] += len(own)
            self.count["entries"] += len(self.inspect(folder, dict(acked), found).lines) - 2
            self.look(reader, dict(acked), folder, found)
            self.go_on(folder, found)

    def _disk(self, verb: str, limit: int) -> None:
        acked = {"delete": {IDS[5]: 0}, "train": {}, "repair": dict.fromkeys(HURT, 0)}[verb]
        said = Child(suffer, self.work, verb, limit, self.seed).finish()
        for _, _, what, folder, raised, found in said[:-1]:
            self.count["trials"] += 1
            self.count[f"{verb}: {'raised' if raised else 'had no effect'}"] += 1
            self.count["on a small file system"] += "small" in what
            try:
                self.inspect(Path(folder), acked, found)
                self.go_on(Path(folder), found)
            except Exception:
                found.append(traceback.format_exc())
            self.close(f"{verb}, {what}", Path(folder), found)


def requests_of(rng: np.random.Generator, ids: Any = IDS) -> list[list[str]]:
    """Twelve ids in requests of one, two or three."""
    drawn = [str(name) for name in rng.permutation(ids)]
    ends = np.cumsum([0, 1, 2, 1, 3, 1, 1, 2, 1])
    return [drawn[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--verb", choices=(*VERBS, "all"), default="all")
    parser.add_argument("--trials", type=int, default=100, help="kills inside the work, or races")
    parser.add_argument("--steps", type=int, default=-1, help="steps to die or fail at; -1: all")
    parser.add_argument("--real", type=float, default=0.2, help="share of runs that compute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the summary")
    options = parser.parse_args(arguments)
    # It is of processes with a backend, which `Child` refuses to fork.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    harness = Harness(work, options.seed, options.real)
    summary = {}
    for verb in VERBS if options.verb == "all" else (options.verb,):
        summary[verb] = harness.run(verb, options.trials, options.steps)
        print(json.dumps({verb: summary[verb]}, indent=2), flush=True)
    harness.bench.close()
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2))
    if any(own["violations"] for own in summary.values()):
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
