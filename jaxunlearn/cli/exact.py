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

import shlex

from jaxunlearn.cli.console import OK, check_json, error, guarded, printer, write_json

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
    if not argv:
        print(__doc__)
    if not argv or argv[0] not in VERBS:
        known = ", ".join(VERBS)
        return error(f"exact: verb is {argv[0] if argv else ''!r}; known verbs: {known}")
    from jaxunlearn.cli import exact_verbs

    options = exact_verbs.parse(argv[0], argv[1:])

    def work() -> None:
        check_json(options.json)
        write_json(options.json, options.run(printer()))

    return guarded(work, shlex.join(["jaxunlearn", "exact", *argv]))
