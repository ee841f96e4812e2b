"""An append-only ledger of deletions: chained by checksums, on disk before the answer.

A file of JSON lines. Every entry holds the checksum of the one before and its own, so that a change
anywhere is found and named. Writers hold an exclusive lock and readers a shared one, so that nobody
sees a line before it is on disk. What a writer that was killed left behind of a line is cut off by
the next one. Whole entries cut off at the end cannot be told from entries that never were: who must
know keeps the head elsewhere, and checks that the ledger `knows` it.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxunlearn.core.disk import DamagedError, alone, sync_folder
from jaxunlearn.core.readers import parse_json, reading

_START = "0" * 64  # what the first entry has for the checksum before it


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: number, from 0.
        time: time in UTC, ISO 8601.
        who: author of the entry.
        what: kind of entry.
        data: content, JSON-like.
        before: checksum of the entry before it.
        checksum: SHA-256 of all of the above.
    """

    number: int
    time: str
    who: str
    what: str
    data: dict[str, Any]
    before: str
    checksum: str


class Ledger:
    """A reader that knows all entries up to some point, and can add to them.

    Attributes:
        path: the file.
        entries: those read so far.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.entries: list[Entry] = []
        self._end = 0  # of the last whole entry, in bytes

    @property
    def head(self) -> str:
        """The checksum of the last entry read."""
        return self.entries[-1].checksum if self.entries else _START

    def knows(self, head: str) -> bool:
        """Whether it has an entry with this checksum."""
        return any(entry.checksum == head for entry in self.entries)

    def refresh(self) -> list[Entry]:
        """Reads what was added since the last look, and returns it; checks the chain.

        Also checks that the last known entry is still where it was: a ledger only grows.

        Raises:
            DamagedError: an entry was changed, cut off, or does not follow the one before.
        """
        with self._locked(fcntl.LOCK_SH):
            return self._read()

    def sync(self) -> None:
        """Returns once all entries that were read are on disk, whoever wrote them."""
        with self.path.open("r+b", buffering=0) as file:
            os.fsync(file.fileno())

    def append(self, what: str, data: dict[str, Any], who: str) -> Entry:
        """Adds an entry, and returns it once it is on disk; for use under `writing`.

        Raises:
            OSError: it cannot be written, as on a full disk; the ledger is as before.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        entry = _signed(Entry(len(self.entries), now, who, what, data, self.head, ""))
        line = _written(entry) + b"\n"
        is_there = self.path.exists()
        if is_there:
            alone(self.path)
        with self.path.open("r+b" if is_there else "w+b", buffering=0) as file:
            try:
                file.truncate(self._end)  # what a killed writer left
                file.seek(self._end)
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                with contextlib.suppress(OSError):
                    file.truncate(self._end)
                error.filename = str(self.path)
                raise
        if self._end == 0:
            sync_folder(self.path.parent)
        self.entries.append(entry)
        self._end += len(line)
        return entry

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the exclusive lock of writers, with everything read that others wrote."""
        with self._locked(fcntl.LOCK_EX):
            if self.path.exists():
                self._read()
            yield

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        number = os.open(self.path.with_suffix(".lock"), os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, kind)
            yield
        finally:
            os.close(number)

    def _read(self) -> list[Entry]:
        with self.path.open("rb", buffering=0) as file:
            self._check_known_end(file)
            file.seek(self._end)
            *lines, rest = file.read().split(b"\n")
        new: list[Entry] = []
        for line in lines:
            new.append(self._parsed(line))
            self.entries.append(new[-1])
            self._end += len(line) + 1
        # A line without its end was never acknowledged, unless only the end is what is wrong.
        if rest and _entry_of(rest[:-1]) is not None:
            raise DamagedError(
                f"{self.path} is damaged: entry {len(self.entries)} has no end, at byte "
                f"{self._end + len(rest) - 1}"
            )
        return new

    def _check_known_end(self, file: Any) -> None:
        size = os.fstat(file.fileno()).st_size
        if size < self._end:
            raise DamagedError(
                f"{self.path} is damaged: it ends at byte {size}, but entry "
                f"{len(self.entries) - 1} ended at {self._end}"
            )
        if not self.entries:
            return
        last = self.entries[-1]
        line = _written(last) + b"\n"
        file.seek(self._end - len(line))
        if file.read(len(line)) != line:
            raise DamagedError(f"{self.path} is damaged: entry {last.number} was changed")

    def _parsed(self, line: bytes) -> Entry:
        number, entry = len(self.entries), _entry_of(line)
        where = f"{self.path} is damaged: entry {number}, at byte {self._end},"
        if entry is None:
            raise DamagedError(f"{where} is no entry")
        if _signed(entry).checksum != entry.checksum or _written(entry) != line:
            raise DamagedError(f"{where} has another checksum than its contents")
        if entry.number != number or entry.before != self.head:
            raise DamagedError(f"{where} does not follow the entry before it")
        return entry


def _signed(entry: Entry) -> Entry:
    fields = dataclasses.asdict(entry)
    del fields["checksum"]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return dataclasses.replace(entry, checksum=hashlib.sha256(text.encode()).hexdigest())


def _written(entry: Entry) -> bytes:
    return json.dumps(dataclasses.asdict(entry), ensure_ascii=False).encode()


def _entry_of(line: bytes) -> Entry | None:
    try:
        with reading("entry"):
            return Entry(**parse_json(line, "entry"))
    except ValueError:
        return None
