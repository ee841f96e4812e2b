"""Verbs that are killed while they write, see `tests.faults`; a hundred kills a verb are slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.killing import Ending, Harness, run
from tests.faults.verbs import VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_goes_on_to_the_same_bits_and_leaves_nothing_behind(verb, tmp_path):
    """Kills by an exception, after which the process that goes on does nothing to the files."""
    if verb == "paths":
        pytest.importorskip("tokenizers")
    harness = Harness(verb, tmp_path)
    steps, command = Ending(tmp_path / "reference"), harness.arguments("reference")
    with steps.watching():
        run(command)
    harness.begin(steps.names)
    harness.trials(3, seed=len(verb))
    assert harness.violations == []
    assert harness.count["kills"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_hundred_kills_of_a_verb(verb, tmp_path):
    command = [sys.executable, "-m", "tests.faults", "--verb", verb, "--json", tmp_path / "s.json"]
    root = Path(__file__).parents[2]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=3600)
    print(done.stdout, done.stderr)
    summary = json.loads((tmp_path / "s.json").read_text())[verb]
    assert (done.returncode, summary["violations"]) == (0, [])
    assert summary["kills"] >= 100
