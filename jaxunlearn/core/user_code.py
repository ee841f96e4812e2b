"""Python files of the user's: run once, named in every error, known by their digest."""

import hashlib
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any, NamedTuple


class File(NamedTuple):
    """A file that was run.

    Attributes:
        name: its name.
        sha256: its digest; what it imports is not part of it.
        mine: what it defines under public names, in order.
    """

    name: str
    sha256: str
    mine: dict[str, Any]

    @property
    def origin(self) -> dict[str, str]:
        """Where its code comes from, JSON-like, as records have it."""
        return {"file": self.name, "sha256": self.sha256}


def run(path: str | os.PathLike, what: str) -> File:
    """Runs a Python file.

    Args:
        path: the file.
        what: what it is, in errors.

    Raises:
        ValueError: it cannot be read or run; the message names the line where there is one.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    module = _module(path, content, f"jaxunlearn_plugin_{digest[:16]}", what)
    mine = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    return File(path.name, digest, mine)


def where(error: BaseException, file: str) -> str:
    """What went wrong in a file of the user's, with the line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == file
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    at = f"line {lines[-1]}: " if lines else ""
    said = error.msg if isinstance(error, SyntaxError) else str(error).split("\n\n")[0]
    return f"{at}{type(error).__name__}: {said}"


def _module(path: Path, content: bytes, name: str, what: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses look up the types of their fields
    try:
        exec(compile(content, str(path), "exec"), vars(module))  # noqa: S102
    except (Exception, SystemExit) as error:  # whatever the user's file does
        del sys.modules[name]
        raise ValueError(f"{what} cannot be run: {where(error, path.name)}") from error
    return module
