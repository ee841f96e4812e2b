"""The verbs on a disk that is full: errors at steps, limits on files, a small file system."""

import contextlib
import ctypes
import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from jaxunlearn.core import ensemble
from jaxunlearn.exact import service
from tests.exact.faults.facts import EXAMPLES, FAILING, IDS, Tell
from tests.exact.faults.processes import player, start_jax
from tests.exact.faults.steps import Steps, cases_of, no_space, some


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
    error, problems = None, []
    with fault:
        try:
            act(store, verb)
        except OSError as raised:
            error = raised
        except Exception:
            problems.append(traceback.format_exc())
    after = (folder / "ledger.jsonl").read_bytes()
    if error is not None and (not after.startswith(before) or b"\n" in after[len(before) :]):
        problems.append(f"{error!r}, but the ledger has changed")
    if error is not None and str(folder) not in str(error):
        problems.append(f"{error!r} names no file")
    try:
        if act(store, verb) is (error is not None):
            problems.append(
                f"after {error!r} the deletion was repeated, or without an error it was not"
            )
    except Exception:
        problems.append(traceback.format_exc())
    return error is not None, problems


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
