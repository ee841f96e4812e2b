"""A store that serves a model, deletes examples from it exactly, and can prove it (S3T).

usage: jaxunlearn exact VERB [options]

  plan      what shards, slices and orders cost, and how long they last
  train     makes a store and trains it; goes on where it was interrupted
  delete    deletes examples: durable and effective when it returns
  predict   what the store answers, to images, to questions, or to its validation set
  status    what is there, what was deleted, what is served
  verify    checks every byte, and with --retrain trains a prefix again and compares bits
  repair    trains orders that lost stages anew, on what is left, while others serve

`jaxunlearn exact VERB --help` lists a verb's options.
"""

import json
import shlex
import sys

from jaxunlearn.cli.console import FAILED, INTERRUPTED, OK, error

VERBS = ("plan", "train", "delete", "predict", "status", "verify", "repair")


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn exact`.

    Returns:
        The exit code: 0, 1 (a run failed, or a store is damaged), 2 (bad input, nothing done), 130
        (interrupted).
    """
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return OK
    if not argv or argv[0] not in VERBS:
        known = ", ".join(VERBS)
        return error(f"exact: verb is {argv[0] if argv else ''!r}; known verbs: {known}")
    from rich.console import Console

    from jaxunlearn.cli import exact_verbs
    from jaxunlearn.core.disk import DamagedError, replacing

    options = exact_verbs.parse(argv[0], argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if options.json is not None and (
            options.json.is_dir() or not options.json.absolute().parent.is_dir()
        ):
            raise ValueError(
                f"json is {str(options.json)!r}; a file in an existing folder is needed"
            )
        answer = options.run(console)
        if options.json is not None:
            with replacing(options.json) as file:
                file.write((json.dumps(answer, indent=1) + "\n").encode())
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept. Go on with", file=sys.stderr)
        print(f"  {shlex.join(['jaxunlearn', 'exact', *argv])}", file=sys.stderr)
        return INTERRUPTED
    except (DamagedError, ArithmeticError) as failure:
        error(str(failure))
        return FAILED
    except (ValueError, OSError) as failure:
        return error(str(failure))
    return OK
