"""Verbs that are killed while they write, see `tests.faults`; a hundred kills a verb are slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.killing import Ending, Harness, run
from tests.faults.verbs import VERBS


@pytest.mark.parametrize(
    ("verb", "trials"),
    [
        ("unlearn", 3),
        ("attribute", 3),
        *(pytest.param(verb, 3, marks=pytest.mark.slow) for verb in ("paths", "compact")),
        *(pytest.param(verb, 100, marks=pytest.mark.slow) for verb in VERBS),
    ],
)
def test_a_killed_verb_goes_on_to_the_same_bits_and_leaves_nothing_behind(verb, trials, tmp_path):
    """Kills by an exception, after which the process that goes on does nothing to the files."""
    if verb == "paths":
        pytest.importorskip("tokenizers")
    harness = Harness(verb, tmp_path)
    steps, command = Ending(tmp_path / "reference"), harness.arguments("reference")
    with steps.watching():
        run(command)
    harness.begin(steps.names)
    harness.trials(trials, seed=len(verb))
    assert harness.violations == []
    assert harness.count["kills"] >= trials


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_kills_by_the_system(verb, tmp_path):
    """Fewer of them, since every run is a process of its own; `python -m tests.faults` has more."""
    options = ["--verb", verb, "--trials", "10", "--json", tmp_path / "summary.json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *options],
        cwd=root,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    print(done.stdout, done.stderr)
    summary = json.loads((tmp_path / "summary.json").read_text())[verb]
    assert (done.returncode, summary["violations"]) == (0, [])
    assert summary["kills"] >= 10
