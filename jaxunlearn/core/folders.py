"""Folders that belong to one run or store: only files of their own in them, one process at a time.

Nothing here needs JAX.
"""

import contextlib
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path


def check_own(folder: str | os.PathLike) -> None:
    """Raises a ValueError if anything in a folder leads out of it, or is no file at all.

    A folder from elsewhere may hold links: what is written or removed through them lies outside.
    The folder itself may be one, or not be there.
    """
    for entry in _entries(folder):
        check_link(entry.path)
        if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            raise ValueError(f"{entry.path} is neither a file nor a folder; remove it")


def check_link(path: str | os.PathLike) -> None:
    """Raises a ValueError if this is a link."""
    if os.path.islink(path):
        raise ValueError(f"{path} is a link; put what it leads to in its place")


def sweep(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of files that `disk.replacing` was writing.

    For whoever holds the folder, since nobody else writes there.
    """
    for entry in _entries(folder):
        if re.fullmatch(r"\..+\.\d+", entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def sweep_beside(file: Path) -> None:
    """Removes what processes that are no more left of this file in a folder that is not ours."""
    with contextlib.suppress(OSError):  # of a folder that cannot be listed, say
        for entry in file.parent.iterdir():
            found = re.fullmatch(rf"\.{re.escape(file.name)}\.(\d+)", entry.name)
            if not found or entry.is_symlink() or not entry.is_file():
                continue
            if not _is_running(int(found[1])):
                entry.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _entries(folder: str | os.PathLike) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder, at any depth; what another process removes meanwhile is left out."""
    try:
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)


class Held:
    """A folder that no other process can hold as long as this object lives."""

    def __init__(self, folder: int):
        self._folder = folder

    def __del__(self):
        os.close(self._folder)


_HELD: "weakref.WeakValueDictionary[tuple[int, int], Held]" = weakref.WeakValueDictionary()


def hold(folder: str | os.PathLike, busy: str) -> Held:
    """Takes a folder for this process; a lock of the system, which a kill frees.

    Of a file system without locks every process gets it.

    Args:
        folder: an existing folder.
        busy: what to say if another process holds it.

    Raises:
        ValueError: another process holds it.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        stat = os.fstat(number)
        place = stat.st_dev, stat.st_ino
        held = _HELD.get(place)
        if held is None:
            lock(number, busy)
            held = _HELD[place] = Held(os.dup(number))
        return held
    finally:
        os.close(number)


def lock(file: int, busy: str) -> None:
    """Takes the lock of an open file or folder, which only one process can have.

    Raises:
        ValueError: another one has it; says `busy`.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{busy}; wait for it") from error
    except (ImportError, OSError):
        pass  # no locks on this system or file system
