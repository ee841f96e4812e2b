"""Small JSON records beside results: what a run was made with, and whether it is still that run."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core.disk import DamagedError, replacing
from jaxunlearn.core.readers import read_object


def read(path: Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
        DamagedError: it is missing or no object of JSON; it is named.
    """
    try:
        return read_object(path, DamagedError)
    except (DamagedError, OSError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error


def write(path: Path, content: Any) -> None:
    """Writes a record at once; a number that JSON does not know is an error."""
    with replacing(path) as file:
        file.write(_written(content))


def read_signed(path: Path) -> dict[str, Any]:
    """Reads what `write_signed` wrote; also what an earlier version wrote, without a checksum.

    Raises:
        DamagedError: it is missing, no record, or not what was written; it is named.
    """
    content = read(path)
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged (it holds no record)")
    name, last = next(reversed(content.items()), ("", None))
    if isinstance(last, str) and len(last) == 64:  # the checksum, whatever has become of its name
        del content[name]
        if path.read_bytes() != _signed(content):
            raise DamagedError(f"{path} is damaged (its contents have another hash)")
    return content


def write_signed(path: Path, content: dict[str, Any]) -> None:
    """Writes a record that is read again, with a checksum, at once."""
    with replacing(path) as file:
        file.write(_signed(content))


def _written(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _signed(content: dict[str, Any]) -> bytes:
    return _written(content | {"sha256": hashlib.sha256(_written(content)).hexdigest()})


def renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A record with the names that its settings have today.

    Args:
        record: as it was read.
        names: `{then: now}`, dots between the levels.
    """
    changed = json.loads(json.dumps(record))
    for then, now in names.items():
        *path, last = then.split(".")
        level = changed
        for name in path:
            level = level.get(name, {}) if isinstance(level, dict) else {}
        if isinstance(level, dict) and last in level:
            level[now.rpartition(".")[2]] = level.pop(last)
    return changed


def check_same(before: Any, now: Any, place: str) -> None:
    """Raises a ValueError that names the first setting in which two records differ.

    Args:
        before: as it was read.
        now: JSON-like; its tuples count as lists.
        place: place of the record, for the message.
    """
    for name, old, new in _differences(before, json.loads(json.dumps(now))):
        raise ValueError(
            f"the run in {place!r} has {name} = {old!r}, but now it is {new!r}; resume it with its "
            "own settings, or choose another folder"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [(name, before, now)]
    dot = f"{name}." if name else ""
    parts = (_differences(before.get(k), now.get(k), f"{dot}{k}") for k in {**before, **now})
    return list(itertools.chain.from_iterable(parts))
