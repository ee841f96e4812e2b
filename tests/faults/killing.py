"""Verbs that are killed at their steps on the file system, and gone on with to the same bits."""

import collections
import contextlib
import io
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.cli import app
from tests.exact.faults.steps import Case, Steps, cases_of, some
from tests.faults.verbs import VERBS

_TIMES = ("seconds", "compile_seconds", "speed")  # what differs from run to run
Attempt = Callable[[list[str], Path, Case], bool]  # whether it was killed before its end


class Killed(BaseException):
    """The end of a process that goes on."""


class Ending(Steps):
    """Ends a run at a step by an exception, after which no other step is done: as a kill does it.

    What other threads do is not counted, since its order is their own.
    """

    def __init__(self, folder: Path, at: int = -1, age: str = ""):
        super().__init__(folder, self._end, at, age)
        self._over = False

    def do(self, name: str, call: Any, half: Any = None, path: str | None = None) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return call()
        if self._over:
            raise Killed
        return super().do(name, call, half, path)

    def _end(self, path: str | None) -> None:
        self._over = True
        with open(os.devnull, "wb") as nowhere:  # where buffers go that nobody will empty
            for file in self.files:
                if not file.closed:
                    os.dup2(nowhere.fileno(), file.fileno())
                    file.close()
        raise Killed


def inside(arguments: list[str], folder: Path, case: Case) -> bool:
    """Runs a verb in this process, to a step or to its end."""
    try:
        with Ending(folder, *case).watching():
            run(arguments)
    except Killed:
        return True
    return False


def run(arguments: list[str]) -> None:
    """Runs a verb in silence."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = app.main(arguments)
    if code != app.OK:
        raise RuntimeError(f"exit code {code}: {said.getvalue()}")


class Harness:
    """Kills of one verb.

    Attributes:
        count: what happened how often.
        violations: what must not happen.
    """

    def __init__(self, verb: str, work: Path, attempt: Attempt = inside):
        """Runs the verb to its end.

        Args:
            verb: its name.
            work: a folder for everything.
            attempt: runs it, perhaps to be killed.
        """
        words, inputs = VERBS[verb]
        self.work, self._attempt = work, attempt
        self._arguments = [*words.split(), *inputs(work)]
        self.count: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.names: list[tuple[str, bool]] = []

    def begin(self, names: list[tuple[str, bool]]) -> None:
        """Takes the steps of the run in `reference`, and what it wrote."""
        self.names, self._wanted = names, contents(self.work / "reference")

    def arguments(self, name: str) -> list[str]:
        """The command in a folder of `work`."""
        folder = self.work / name
        folder.mkdir(exist_ok=True)
        out = ["--out", str(folder / "run"), "--json", str(folder / "out.json")]
        return [*self._arguments, *out]

    def trials(self, n: int, seed: int = 0) -> None:
        """Kills at n steps, before them or half way; where there are fewer, some twice in a row."""
        rng = np.random.default_rng(seed)
        cases = some(cases_of(self.names), n, rng)
        for number in range(2 * n):
            if self.count["kills"] >= n:  # not every second kill comes before the end
                return
            second = (int(rng.integers(len(self.names))), "before")
            again = [second] if number >= len(cases) else []
            self._trial([cases[number % len(cases)], *again])

    def _trial(self, cases: list[Case]) -> None:
        name = f"trial {self.count['trials']}"
        command, folder, problems = self.arguments(name), self.work / name, []
        try:
            for case in cases:
                self.count["kills"] += self._attempt(command, folder, case)
                command = [*command, "--resume"] if "--resume" not in command else command
            self._attempt(command, folder, (-1, ""))
            problems += differences(contents(folder), self._wanted)
        except Exception:
            problems.append(traceback.format_exc())
        self.count["trials"] += 1
        what = ", then ".join(f"{age} {at}, {self.names[at][0]}" for at, age in cases)
        self.violations += [f"killed {what}, in {folder}: {text}" for text in problems]
        if problems:
            print(self.violations[-1], file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, Any]:
    """What a run wrote, by file; without times of day and of work."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if any((parent / "checksums.json").exists() for parent in file.parents):
            continue  # orbax names its files at random
        name = file.relative_to(folder).as_posix()
        if file.is_dir() or file.suffix == ".png" or file.name in ("command.txt", "seconds.json"):
            found[name] = "is there"
        elif file.suffix == ".json":
            found[name] = _without_times(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in _TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Files that are left behind, missing, or other than they should be."""
    return (
        [f"{name} is left behind" for name in found if name not in wanted]
        + [f"{name} is missing" for name in wanted if name not in found]
        + [f"{name} differs" for name in wanted if name in found and found[name] != wanted[name]]
    )
