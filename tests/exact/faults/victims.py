"""What runs in children: verbs that are killed, rivals, and a reader that looks all the time."""

import contextlib
import os
import select
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from jax._src import xla_bridge

from jaxunlearn.core import ensemble
from jaxunlearn.exact import service
from tests.exact.faults.facts import EXAMPLES, Tell, place, stages
from tests.exact.faults.processes import Child, player, start_jax
from tests.exact.faults.steps import Case, Steps, die


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
    return {name: message[0] for message in said if message[1] == "ack" for name, _ in message[2]}


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
