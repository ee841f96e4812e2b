"""What verbs share on a terminal: exit codes, errors, a progress bar."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes


def error(message: str) -> int:
    """Says what is wrong with the input; returns the exit code."""
    print(f"jaxunlearn: error: {message}", file=sys.stderr)
    return USAGE


class Bar:
    """One bar over all phases, with the time that is left."""

    def __init__(self, console: Console, phases: dict[str, float]):
        """Takes the phases with their expected shares of the work."""
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self.weights = phases
        self.finished = dict.fromkeys(self.weights, 0.0)
        self.task = self.progress.add_task("", total=sum(self.weights.values()))

    def update(self, phase: str, done: int, total: int) -> None:
        """Shows that `done` of `total` models of a phase are finished."""
        self.finished[phase] = self.weights[phase] * done / total
        description = f"{phase} {done}/{total}"
        self.progress.update(
            self.task, completed=sum(self.finished.values()), description=description
        )

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()
