"""Processes: children that are forked for a trial, and the one whose JAX stays warm."""

import ctypes
import json
import os
import pickle
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax._src import lru_cache, xla_bridge

from jaxunlearn.core import ensemble, tree
from jaxunlearn.exact import service
from jaxunlearn.nn.images import vit
from tests.exact.faults.facts import (
    CONFIG,
    EXAMPLES,
    HURT,
    IDS,
    ORDERS,
    PATIENCE,
    PLAN,
    Facts,
    Tell,
    bits,
)


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
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])
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
