"""What a process does to the files of a store, step by step; and acting at one of them."""

import contextlib
import errno
import fcntl
import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


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
        files: that were opened to write.
    """

    def __init__(
        self, folder: Path, act: Callable[[str | None], None] = die, at: int = -1, age: str = ""
    ):
        self.folder, self.act, self.at, self.age = str(folder), act, at, age
        self.names: list[tuple[str, bool]] = []
        self.files: list[Any] = []

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
            names = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
            watched = [(os, name) for name in names]
            for module, name in [*watched, (fcntl, "flock")]:
                stack.enter_context(mock.patch.object(module, name, self._wrapped(module, name)))
            stack.enter_context(mock.patch.object(Path, "open", self._open(Path.open)))
            yield

    def _wrapped(self, module: Any, name: str) -> Callable[..., Any]:
        real = getattr(module, name)

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            action = functools.partial(real, first, *rest, **options)
            path = None if name in ("fsync", "flock") else str(first)
            return self.do(name, action, path=path) if self._is_mine(first, options) else action()

        return call

    def _is_mine(self, first: Any, options: dict[str, Any]) -> bool:
        if options.get("dir_fd") is not None:  # `shutil.rmtree`
            first = options["dir_fd"]
        first = first.fileno() if hasattr(first, "fileno") else first
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        return path.startswith(self.folder)

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            action = functools.partial(real, path, mode, *rest, **options)
            if not set(mode) & set("wa+") or not self._is_mine(path, {}):
                return action()
            self.files.append(self.do("open", action, path=str(path)))
            return Watched(self.files[-1], self, path, options.get("buffering") == 0)

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
        action = functools.partial(self._file.write, data)
        if not self._raw:
            return action()
        return self._steps.do("write", action, lambda: self._file.write(data[: len(data) // 2]))

    def truncate(self, size: int) -> int:
        return self._steps.do("truncate", functools.partial(self._file.truncate, size))

    def flush(self) -> None:
        def half() -> None:
            self._file.flush()
            os.truncate(self._path, self._path.stat().st_size // 2)

        # What is changed in place was there before, and no kill cuts it off.
        is_new = not self._file.mode.startswith("r")
        self._steps.do("flush", self._file.flush, half if is_new else None)

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
