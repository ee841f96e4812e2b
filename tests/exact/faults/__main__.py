"""Faults that a store must outlive: processes killed anywhere, writers at once, a full disk.

    python -m tests.exact.faults --verb delete --trials 100 --seed 0 --json summary.json

Whatever happens: no acknowledged deletion is lost, no deleted slice is served, nothing is served
that no whole run wrote, and the verb that was killed can be run again. What a store has to serve is
worked out here from its files alone, with code of its own (`Facts`).

One process has imported everything and forks a child for every trial, without ever starting a JAX
backend itself; another one ("the bench") has one, which stays warm. Most of the children that train
take the results of compiled lanes from a recording of it: tracing would be nearly all of their
life, and hardly a kill would meet a file that is being written. A share of them computes for real.

    delete  requests one by one; the process is killed. Some trials with a reader that notes when it
            served what, some with a second process that deletes meanwhile.
    train   a first training; killed up to three times in a row, then finished and compared, bit by
    repair  bit, with a run that was never killed. In half of the trials a deletion comes meanwhile.
    race    processes that delete the same examples at once.
    disk    all three with ENOSPC at every step that can raise it, with a limit on the size of
            files, and on a small file system that is full (where one may be mounted).

The verbs that kill do so at random moments, and besides before and half way through every single
step on the file system (`Steps`).
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from tests.exact.faults.facts import VERBS
from tests.exact.faults.harness import Harness


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--verb", choices=(*VERBS, "all"), default="all")
    parser.add_argument("--trials", type=int, default=100, help="kills inside the work, or races")
    parser.add_argument("--steps", type=int, default=-1, help="steps to die or fail at; -1: all")
    parser.add_argument("--real", type=float, default=0.2, help="share of runs that compute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the summary")
    options = parser.parse_args(arguments)
    # It is of processes with a backend, which `Child` refuses to fork.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    harness = Harness(work, options.seed, options.real)
    summary = {}
    for verb in VERBS if options.verb == "all" else (options.verb,):
        summary[verb] = harness.run(verb, options.trials, options.steps)
        print(json.dumps({verb: summary[verb]}, indent=2), flush=True)
    harness.bench.close()
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2))
    if any(counts["violations"] for counts in summary.values()):
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
