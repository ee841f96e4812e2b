"""Trials on copies of three stores, and what is counted and found wrong in them."""

import collections
import contextlib
import functools
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.exact import service
from tests.exact.faults.disk import copied, suffer
from tests.exact.faults.facts import HURT, IDS, LATE, VERBS, Facts, Kill, inspect
from tests.exact.faults.processes import Bench, Child
from tests.exact.faults.steps import Case, cases_of, some
from tests.exact.faults.victims import Reader, acks, compete, delete, train, train_between


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
            for other in ("delete", "train", "repair"):
                self._disk(other, steps)
        elif verb == "race":
            for _ in range(trials):
                self._race(rng)
        else:
            self._kill(verb, rng, trials, steps)
        seconds = round(time.monotonic() - start, 1)
        summary = {"seed": self.seed, "seconds": seconds, "violations": self.violations}
        return summary | dict(sorted(self.count.items()))

    @contextlib.contextmanager
    def trial(self, verb: str, what: str) -> Iterator[tuple[Path, list[str]]]:
        """A copy of a store and a list for what is wrong; the copy is kept if anything is."""
        folder, problems = copied(self.work, verb), []
        try:
            yield folder, problems
        except Exception:
            problems.append(traceback.format_exc())
        self.count["trials"] += 1
        self.close(what, folder, problems)
        if self.count["trials"] % 20 == 0:
            print(f"{what}: {self.count['trials']} trials", file=sys.stderr, flush=True)

    def close(self, what: str, folder: Path, problems: list[str]) -> None:
        self.violations += [f"{what}, {folder}: {text}" for text in problems]
        if problems:
            print(what, *problems, sep="\n", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)

    # Kills

    def _kill(self, verb: str, rng: np.random.Generator, trials: int, steps: int) -> None:
        once, options = (self._delete, [None]) if verb == "delete" else (self._train, [False])
        if verb != "delete" and self.real:
            options.append(True)
        said = {real: self.unkilled(verb, rng, real) for real in options}
        names = next(message[2] for message in said[options[0]] if message[1] == "steps")
        marks = {
            real: np.array([message[0] for message in words if message[1] != "steps"]) / 1e9
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
        words = [
            " ".join(map(str, message[1:2] if message[1] == "ack" else message[1:3]))
            for message in said
        ]
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
            self.trial(verb, f"{verb} {case or ''}") as (folder, problems),
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
            facts = self.inspect(folder, acked, problems)
            if not other and any(
                0 < len(set(ids) & set(facts.deleted)) < len(ids) for ids in requests
            ):
                problems.append("a request was done by halves")
            self.count["deletions acknowledged"] += len(acked)
            self.count["deletions on disk before they were acknowledged"] += len(
                set(facts.deleted) - set(acked)
            )
            self.look(reader, acked, folder, problems)
            self.go_on(folder, problems)

    def _train(self, verb: str, rng, real: bool, kill: Kill, case: Case | None = None) -> None:
        number = self.count["trials"]
        acked = dict.fromkeys(HURT if verb == "repair" else (), 0)
        with (
            self.trial(verb, f"{verb} {case or ''}") as (folder, problems),
            contextlib.ExitStack() as stack,
        ):
            reader = stack.enter_context(Reader(folder)) if number % 3 == 0 else None
            late = LATE[number // 2 % 2] if number % 2 else None
            meanwhile = functools.partial(self.late, folder, late, acked) if late else None
            for _ in range(1 if case else 3):
                child = Child(train, folder, verb, self.work, real, case)
                kill(child, meanwhile)
                self.check_said(child.said)
                self.inspect(folder, acked, problems)
                self.count["kills of runs that computed"] += bool(real)
                meanwhile = None
                if child.said and child.said[-1][1] == "end":
                    break
            self.complete(verb, rng, folder, acked, problems)
            self.look(reader, acked, folder, problems)
            self.go_on(folder, problems)

    def _between(self, verb: str, name: str) -> None:
        """Nothing is killed; the deletion counts against what the run has trained."""
        with self.trial(verb, f"{verb}, {name} is deleted meanwhile") as (folder, problems):
            said = Child(train_between, folder, verb, self.work, name).finish()
            acked = dict.fromkeys(HURT if verb == "repair" else (), 0) | acks(said)
            self.inspect(folder, acked, problems)
            self.count["deletions during a run"] += 1
            self.go_on(folder, problems)

    def late(self, folder: Path, name: str, acked: dict[str, int]) -> None:
        service.Service(folder).delete([name])
        acked[name] = time.monotonic_ns()
        self.count["deletions acknowledged"] += 1

    def complete(self, verb: str, rng, folder: Path, acked: dict[str, int], problems: list[str]):
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
            problems.append(
                f"{lanes} lanes were on disk, but only {taken} prefixes were taken over"
            )
        if min(map(min, Facts(folder).left())) < 2 and not name:
            problems.append(f"stages left are {Facts(folder).left()} after a complete run")
        self.inspect(folder, acked, problems)
        self.count["prefixes taken over"] += taken
        if list(folder.rglob(".*")) or (folder / "work").exists():
            problems.append("what killed runs left is still there after a complete run")

    # Looking

    @staticmethod
    def check_said(said: list[list[Any]]) -> None:
        if said and said[-1][1] == "failed":
            raise RuntimeError(said[-1][2])

    def inspect(self, folder: Path, acked: dict[str, int], problems: list[str]) -> Facts:
        facts = Facts(folder)
        self.count["torn lines"] += facts.torn
        problems += inspect(folder, acked, self.reference)
        return facts

    def look(self, reader: Reader | None, acked: dict[str, int], folder: Path, problems: list[str]):
        if reader is not None:
            looks, wrong = reader.problems(acked, Facts(folder).deleted)
            self.count["looks of readers"] += looks
            problems += wrong

    def go_on(self, folder: Path, problems: list[str]) -> None:
        """The store still deletes."""
        store = service.Service(folder)
        name = next(name for name in IDS if name not in store.deleted)
        if [store.delete([name])[0].repeated for _ in range(2)] != [False, True]:
            problems.append(f"deleting {name} twice was not said to be new, then repeated")
        problems += inspect(folder, {name: 0}, self.reference)

    # Others

    def _race(self, rng: np.random.Generator) -> None:
        ids = rng.choice(IDS, 12, replace=False)
        with self.trial("delete", "race") as (folder, problems), Reader(folder) as reader:
            source, gate = os.pipe()
            children = [Child(compete, folder, requests_of(rng, ids), source) for _ in range(3)]
            for child in children:
                child.hear(1)
            os.write(gate, b"xxx")
            said = [child.finish() for child in children]
            os.close(source)
            os.close(gate)
            pairs = [
                pair for words in said for word in words if word[1] == "ack" for pair in word[2]
            ]
            new = sorted(name for name, repeated in pairs if not repeated)
            if new != sorted(ids) or len(pairs) != 3 * len(ids):
                problems.append(f"new were {new}, of {sorted(ids)}")
            acked = collections.ChainMap(*map(acks, said))
            self.count["deletions acknowledged"] += len(pairs)
            self.count["entries"] += len(self.inspect(folder, dict(acked), problems).lines) - 2
            self.look(reader, dict(acked), folder, problems)
            self.go_on(folder, problems)

    def _disk(self, verb: str, limit: int) -> None:
        acked = {"delete": {IDS[5]: 0}, "train": {}, "repair": dict.fromkeys(HURT, 0)}[verb]
        said = Child(suffer, self.work, verb, limit, self.seed).finish()
        for _, _, what, folder, raised, problems in said[:-1]:
            self.count["trials"] += 1
            self.count[f"{verb}: {'raised' if raised else 'had no effect'}"] += 1
            self.count["on a small file system"] += "small" in what
            try:
                self.inspect(Path(folder), acked, problems)
                self.go_on(Path(folder), problems)
            except Exception:
                problems.append(traceback.format_exc())
            self.close(f"{verb}, {what}", Path(folder), problems)


def requests_of(rng: np.random.Generator, ids: Any = IDS) -> list[list[str]]:
    """Twelve ids in requests of one, two or three."""
    drawn = [str(name) for name in rng.permutation(ids)]
    ends = np.cumsum([0, 1, 2, 1, 3, 1, 1, 2, 1])
    return [drawn[a:b] for a, b in zip(ends, ends[1:], strict=False)]
