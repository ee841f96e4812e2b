"""What verbs share on a terminal: exit codes, errors and how they end a verb, files, a bar.

Nothing heavy is imported here, so that a mistyped verb is answered at once.
"""

import contextlib
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from jaxunlearn.core.streams import Stream, tell

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes
_OF_A_RUN = ("settings.json", "results.json", "seconds.json")  # the verbs' own files


def command_line(work: Callable[[], int], command: str) -> int:
    """Runs a command: with all standard streams open, and ended in order before a verb begins.

    Args:
        work: the command; returns the exit code.
        command: as it is typed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; a file of ours would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        try:
            with _no_interrupt_is_lost():
                return work()
        finally:
            Stream(sys.stdout).flush()
    except KeyboardInterrupt:
        return _interrupted(
            f"interrupted before anything was begun. Run it again with\n  {command}"
        )
    except BrokenPipeError:  # nobody reads the help
        return OK
    except OSError as failure:  # of standard output; others end in `guarded`
        tell(f"jaxunlearn: error: {failure}")
        return FAILED
    finally:
        Stream(sys.stderr).flush()


def _interrupted(message: str) -> int:
    """Says so; returns the exit code."""
    tell(message)
    exec("")  # makes Python forget where it came from: else it may end by a signal, without a code
    return INTERRUPTED


@contextlib.contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """A Ctrl-C that comes at a bad moment comes once more a little later.

    In a callback of the garbage collector it would be lost, in the middle of an import it can crash
    a library that is written in C++.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return come_again()
            frame = frame.f_back
        raise KeyboardInterrupt

    def on_lost(lost: Any) -> None:
        is_interrupt = issubclass(lost.exc_type, KeyboardInterrupt)
        return come_again() if is_interrupt else hook(lost)

    def come_again() -> None:
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    is_ours = is_usual and threading.current_thread() is threading.main_thread()
    hook, sys.unraisablehook = sys.unraisablehook, on_lost
    if is_ours:
        signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def error(message: str) -> int:
    """Says what is wrong with the input; returns the exit code."""
    tell(f"jaxunlearn: error: {message}")
    return USAGE


def printer() -> "Console":
    """For results; of a fixed width where they do not go to a terminal.

    Texts are shown as they are, without markup; escape sequences in them are made harmless.
    """
    from jaxunlearn.cli._terminal import PlainConsole

    return PlainConsole(sys.stdout, width=None if sys.stdout.isatty() else 120)


def notices(*, quiet: bool = False) -> "Console":
    """For what is said beside the results, as a bar."""
    from jaxunlearn.cli._terminal import PlainConsole

    return PlainConsole(sys.stderr, quiet=quiet)


def check_json(path: Path | None, made: Path | None = None, *, option: str = "json") -> None:
    """Raises a ValueError if the results cannot be written there.

    Nothing in the folder of a run or a store is replaced.

    Args:
        path: the option `--json`, or another one.
        made: a folder that the verb makes.
        option: name of the option.
    """
    if path is None:
        return
    place = Path(os.path.realpath(path))
    ours = None if made is None else Path(os.path.realpath(made))
    if _is_special(path) and path.exists():
        can_be_written = os.access(path, os.W_OK) and not stat.S_ISSOCK(path.stat().st_mode)
    else:
        folder = place.parent
        can_be_written = (folder.is_dir() and os.access(folder, os.W_OK)) or folder == ours
    if path.is_dir() or not can_be_written:
        raise ValueError(
            f"{option} is {str(path)!r}; a file in a folder that can be written is needed"
        )
    for folder in place.parents:
        if (folder / "ledger.jsonl").exists() and (folder / "plan.json").exists():
            raise ValueError(
                f"{option} is {str(path)!r}, in the store {str(folder)!r}; name another"
            )
        is_new = place.parent == folder and place.suffix == ".json" and not place.exists()
        is_new = is_new and place.name not in _OF_A_RUN
        if not is_new and (folder == ours or _holds_run(folder)):
            raise ValueError(
                f"{option} is {str(path)!r}, in the folder of a run; a file elsewhere is needed, "
                "or a new .json file there"
            )


def _holds_run(folder: Path) -> bool:
    from jaxunlearn.core.readers import read_object

    with contextlib.suppress(OSError, ValueError):
        return {"settings", "versions"} <= read_object(folder / "settings.json").keys()
    return False


def _is_special(path: Path) -> bool:
    """Whether it is a link, a device, a pipe: what must not be replaced by a file."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def write_json(path: Path | None, content: Any) -> None:
    """Writes what a verb answers, bytes or something JSON-like; None: nowhere.

    A file appears whole or not at all. Anything else, such as `/dev/stdout` or a link, is written
    to as it is.
    """
    if path is None:
        return
    from jaxunlearn.core import folders
    from jaxunlearn.core.disk import replacing

    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=1) + "\n").encode()
    number = _standard_stream(path)
    if number is None and not _is_special(path):
        folders.sweep_beside(path)
        with replacing(path) as file:
            file.write(content)
        return
    try:
        sys.stdout.flush()
        # Opened by its name it would begin anew, over what was printed there.
        with path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as file:
            file.write(content)
    except OSError as failure:
        failure.filename = str(path)
        raise


def _standard_stream(path: Path) -> int | None:
    """Standard output or error, if that is what a path leads to."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(number)):
                return number
    return None


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
        bad_input: exit code of a ValueError, an OSError or a package that is missing: USAGE as long
            as nothing is done, FAILED from then on.

    Returns:
        The exit code. One of several processes that fails where the others do not ends at once.
    """
    from jaxunlearn.core.checks import NonFiniteError
    from jaxunlearn.core.disk import DamagedError
    from jaxunlearn.core.extras import MissingPackageError

    try:
        work()
    except KeyboardInterrupt:
        message = f"interrupted; what is finished is kept. Go on with\n  {again}"
        return _leave(_interrupted(message))
    except NonFiniteError as failure:  # in all processes
        error(str(failure))
        return FAILED
    except BrokenPipeError as failure:  # of a pipe that results go to; it is named
        error(str(failure))
        return _leave(FAILED)
    except ConnectionError as failure:  # another of several processes died
        error(f"{failure}; what is finished is kept. Go on with --resume")
        return _leave(FAILED)
    except (DamagedError, ArithmeticError) as failure:
        error(str(failure))
        return _leave(FAILED)
    except (ValueError, OSError, MissingPackageError) as failure:
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
