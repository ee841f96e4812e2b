"""Every verb with a run folder, killed by SIGKILL at its steps on the file system and resumed.

    python -m tests.faults --verb unlearn --trials 100 --seed 0 --json summary.json

A run that was killed before or half way through a step (an opened, flushed, renamed or removed
file, a folder, an fsync), perhaps twice, is gone on with by `--resume`; it must leave the files of
a run that was never killed, with the same bits, and no others.

The parent has imported everything and never starts a JAX backend; every run is a process that it
forks. Compiled lanes are recorded by the first run and played back in the others, or their life
would be nothing but compiling.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

# What the runs need, imported once.
import jaxunlearn.cli.attribute
import jaxunlearn.cli.compact
import jaxunlearn.cli.paths
import jaxunlearn.cli.unlearn  # noqa: F401
from jaxunlearn.core import ensemble
from tests.exact.faults.facts import Tell
from tests.exact.faults.processes import Child, player, recorder, start_jax
from tests.exact.faults.steps import Case, Steps, die
from tests.faults.killing import Harness, run
from tests.faults.verbs import VERBS


def work_on(tell: Tell, arguments: list[str], folder: Path, work: Path, case: Case) -> None:
    """Runs a verb; dies at a case, if it comes to one."""
    is_first = not (work / "recording").exists()
    start_jax(work, writes=is_first)
    steps = Steps(folder, die, *case)
    lanes = recorder(work) if is_first else player(work)
    with mock.patch.object(ensemble, "lanes", lanes), steps.watching():
        run(arguments)
    tell("steps", steps.names)


def kill(verb: str, work: Path, trials: int, seed: int) -> dict:
    """The summary of a verb's trials."""

    def attempt(arguments: list[str], folder: Path, case: Case) -> bool:
        said = Child(work_on, arguments, folder, work, case).end()
        if said and said[-1][1] == "failed":
            raise RuntimeError(said[-1][2])
        return not said

    harness = Harness(verb, work, attempt)
    task = harness.arguments("reference"), work / "reference", work, (-1, "")
    names = Child(work_on, *task).finish()[0][2]
    harness.begin([tuple(name) for name in names])
    harness.trials(trials, seed)
    return {"steps": len(names), **harness.count, "violations": harness.violations}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--verb", choices=(*VERBS, "all"), default="all")
    parser.add_argument("--trials", type=int, default=100, help="kills of each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the summary")
    options = parser.parse_args(arguments)
    summary = {}
    for verb in VERBS if options.verb == "all" else (options.verb,):
        work = Path(tempfile.mkdtemp(prefix=f"faults-{verb}-"))
        summary[verb] = kill(verb, work, options.trials, options.seed)
        print(json.dumps({verb: summary[verb]}, indent=2), flush=True)
        if not summary[verb]["violations"]:
            shutil.rmtree(work)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2))
    return int(any(counts["violations"] for counts in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
