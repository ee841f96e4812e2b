"""jaxunlearn: machine unlearning, compared with retraining.

usage: jaxunlearn VERB [options]

  unlearn    many models forget by several methods, and retrained oracles judge them
  compare    several runs of `unlearn` in one table, and on one page
  attribute  which training points a model's answers depend on: datamodels and TRAK
  paths      language models trained in stages in different orders forget differently
  compact    a network of 15,000 parameters: two branches, fused, unfrozen, exported
  adapt      a network adapts to a stream of corrupted images while it predicts them
  exact      a store that serves a model, deletes examples from it exactly, and proves it

`jaxunlearn VERB --help` lists a verb's options. Compiled programs are kept in
~/.cache/jaxunlearn/xla, at most 1 GiB; with --no-compilation-cache none is read or written.
"""

import importlib
import shlex
import sys

from jaxunlearn import __version__
from jaxunlearn.cli import programs
from jaxunlearn.cli.console import FAILED, INTERRUPTED, OK, USAGE, command_line, error

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "main"]

_UNCACHED = "--no-compilation-cache"  # of every verb
# Each has a file of this package, with `main(argv) -> exit code`, that is imported when called.
VERBS = ("unlearn", "compare", "attribute", "paths", "compact", "adapt", "exact")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0, 1 (a run failed), 2 (bad input, nothing written), 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else argv
    return command_line(lambda: _run(argv), shlex.join(["jaxunlearn", *argv]))


def _run(argv: list[str]) -> int:
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return OK
    if argv[:1] == ["--version"]:
        print(__version__)
        return OK
    if not argv:  # help is of use, and yet nothing was done
        print(__doc__)
    if not argv or argv[0] not in VERBS:
        known = ", ".join(VERBS)
        return error(f"verb is {argv[0] if argv else ''!r}; known verbs: {known}")
    if _UNCACHED in argv:
        argv = [word for word in argv if word != _UNCACHED]
    else:
        programs.keep()
    return importlib.import_module(f"jaxunlearn.cli.{argv[0]}").main(argv[1:])
