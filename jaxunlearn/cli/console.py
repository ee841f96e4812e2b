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


def check_json(path: Path | None, made: Path | None = None) -> None:
    """Raises a ValueError if the results cannot be written there.

    Args:
        path: the option `--json`.
        made: a folder that the verb makes.
    """
    if path is None:
        return
    folder = path.absolute().parent
    is_there = folder.is_dir() and os.access(folder, os.W_OK)
    if path.is_dir() or not (is_there or (made is not None and folder == made.absolute())):
        raise ValueError(f"json is {str(path)!r}; a file in a folder that can be written is needed")


def write_json(path: Path | None, content: Any) -> None:
    """Writes what a verb answers, bytes or something JSON-like, at once; None: nowhere."""
    if path is None:
        return
    from jaxunlearn.core.checkpoint import replacing

    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=1) + "\n").encode()
    with replacing(path) as file:
        file.write(content)


def guarded(work: Callable[[], Any], again: str, *, bad_input: int = USAGE) -> int:
    """Does some work of a verb; every error has one place here.

    Args:
        work: is called.
        again: how to go on after an interruption, e.g. a command.
        bad_input: exit code of a ValueError or OSError: USAGE as long as nothing is done, FAILED
            from then on.

    Returns:
        The exit code. One of several processes that fails while the others work ends at once.
    """
    try:
        work()
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is kept. Go on with\n  {again}",
            file=sys.stderr,
        )
        return _leave(INTERRUPTED)
    except ConnectionError as failure:  # of several processes; it is an OSError
        error(f"{failure}; what is finished is kept. Go on with --resume")
        return _leave(FAILED)
    except ArithmeticError as failure:  # in all processes
        error(str(failure))
        return FAILED
    except (ValueError, OSError) as failure:
        error(str(failure))
        is_damage = type(failure).__name__ == "DamagedError"
        return bad_input if bad_input == USAGE and not is_damage else _leave(FAILED)
    return OK
