"""What verbs share on a terminal: exit codes, errors and how they end a verb, files, a bar.

Nothing heavy is imported here, so that a mistyped verb is answered at once.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes


def error(message: str) -> int:
    """Says what is wrong with the input; returns the exit code."""
    print(f"jaxunlearn: error: {message}", file=sys.stderr)
    return USAGE


def printer() -> "Console":
    """For results; of a fixed width where they do not go to a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def check_json(path: Path | None, made: Path | None = None, *, option: str = "json") -> None:
    """Raises a ValueError if the results cannot be written there.

    Args:
        path: the option `--json`, or another one.
        made: a folder that the verb makes.
        option: name of the option.
    """
    if path is None:
        return
    folder = path.absolute().parent
    is_there = folder.is_dir() and os.access(folder, os.W_OK)
    if path.is_dir() or not (is_there or (made is not None and folder == made.absolute())):
        raise ValueError(
            f"{option} is {str(path)!r}; a file in a folder that can be written is needed"
        )


def write_json(path: Path | None, content: Any) -> None:
    """Writes what a verb answers, bytes or something JSON-like, at once; None: nowhere."""
    if path is None:
        return
    from jaxunlearn.core.disk import replacing

    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=1) + "\n").encode()
    with replacing(path) as file:
        file.write(content)


def found(dataset: Any) -> str:
    """How many examples a data set has, and what becomes of them."""
    what = "images" if dataset.x_train.ndim == 4 else "examples"
    n, m = len(dataset.x_train), len(dataset.x_val)
    total = sum(dataset.sizes.values()) or n + m
    names = f" ({', '.join(dataset.classes)})" if 0 < len(dataset.classes) <= 10 else ""
    return (
        f"{dataset.name}: {total:,} {what} of {dataset.n_classes} classes{names} are there; "
        f"{n:,} train, {m:,} validate"
    )


def guarded(work: Callable[[], Any], again: str, *, bad_input: int = USAGE) -> int:
    """Does some work of a verb; what goes wrong becomes a message and an exit code, here alone.

    Args:
        work: is called.
        again: a command that goes on after an interruption.
        bad_input: exit code of a ValueError or OSError: USAGE as long as nothing is done, FAILED
            from then on.

    Returns:
        The exit code. One of several processes that fails where the others do not ends at once.
    """
    from jaxunlearn.core.checks import NonFiniteError
    from jaxunlearn.core.disk import DamagedError

    try:
        work()
    except KeyboardInterrupt:
        print(f"interrupted; what is finished is kept. Go on with\n  {again}", file=sys.stderr)
        return _leave(INTERRUPTED)
    except NonFiniteError as failure:  # in all processes
        error(str(failure))
        return FAILED
    except ConnectionError as failure:  # another of several processes died
        error(f"{failure}; what is finished is kept. Go on with --resume")
        return _leave(FAILED)
    except (DamagedError, ArithmeticError) as failure:
        error(str(failure))
        return _leave(FAILED)
    except (ValueError, OSError) as failure:
        error(str(failure))
        return bad_input if bad_input == USAGE else _leave(bad_input)
    return OK


def _leave(code: int) -> int:
    if "jax" not in sys.modules:
        return code
    from jaxunlearn.core import mesh

    return mesh.leave(code)


class Bar:
    """One bar over all phases, with the time that is left."""

    def __init__(self, console: "Console", phases: dict[str, float]):
        """Takes the phases with their expected shares of the work."""
        from rich import progress

        self.progress = progress.Progress(
            progress.TextColumn("{task.description:<24}"),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:>3.0f}%"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
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
