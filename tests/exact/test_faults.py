"""Kills, rivals and full disks, see `faults`; a hundred kills a verb are slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KILLED = ("delete", "train", "repair")


def run(folder, *arguments, before=""):
    """The harness in a process of its own: it forks, which one with JAX's threads must not."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += f"from tests.exact.faults import __main__ as faults; {before}"
    code += f"\nsys.exit(faults.main({[*map(str, arguments), '--json', 'summary.json']!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (folder / "summary.json").exists(), done.stderr
    print(done.stdout)
    return done.returncode, json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return run(folder, "--trials", 1, "--steps", 2, "--real", 0)


def check_killed(counts, trials):
    assert counts["violations"] == []
    assert counts["kills inside"] >= trials
    assert counts["kills at steps"] > 0 and counts["deletions acknowledged"] > 0
    assert counts["looks of readers"] > 0


def test_a_few_kills_lose_and_serve_nothing(quick):
    code, summary = quick
    for verb in KILLED:
        check_killed(summary[verb], 1)
    assert code == 0


def test_three_processes_that_delete_at_once(quick):
    counts = quick[1]["race"]
    assert counts["violations"] == []
    # Twelve ids each by three processes; an entry names one to three that were new.
    assert counts["deletions acknowledged"] == 36 and 4 <= counts["entries"] <= 12


def test_a_full_disk_loses_nothing(quick):
    counts = quick[1]["disk"]
    assert counts["violations"] == []
    for verb in KILLED:
        assert counts[f"{verb}: raised"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*KILLED, "race", "disk"])
def test_a_hundred_kills_lose_and_serve_nothing(verb, tmp_path):
    code, summary = run(tmp_path, "--verb", verb, "--seed", 1)
    assert (code, summary[verb]["violations"]) == (0, [])
    if verb in KILLED:
        check_killed(summary[verb], 100)


# Libraries that break the contract: their verb, options, and what the harness says of them.
SABOTAGE = {
    "an acknowledgement before the entry": (
        ("delete", 5, 0),
        "acknowledged and not deleted",
        """
real, waiting = service.Service.delete, []
def delete(self, ids):
    waiting.append(list(ids))
    if len(waiting) > 1:
        real(self, waiting.pop(0))
    return [service.Outcome(name, 0, 0, 0, False) for name in ids]
service.Service.delete = delete
""",
    ),
    "a reader that looks at the ledger once": (
        ("delete", 5, 0),
        "was deleted",
        """
real = service.Service.refresh
service.Service.refresh = lambda self: None if self.ledger.entries else real(self)
""",
    ),
    "an entry without a lock": (
        ("race", 5, 0),
        "damaged",
        """
ledger.fcntl = types.SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_SH=0)
""",
    ),
    "files that are written in place": (
        ("train", 1, 40),
        "is damaged",
        """
@contextlib.contextmanager
def replacing(path):
    with path.open("w+b") as file:
        yield file
        file.flush()
disk.replacing = replacing
""",
    ),
    "a run that claims to have seen what came meanwhile": (
        ("repair", 0, 0),
        "other bits than a run that was never killed",
        """
real = ledger.Ledger.append
def append(self, what, data, who):
    seen = {"seen": len(self.entries) - 1} if "seen" in data else {}
    return real(self, what, data | seen, who)
ledger.Ledger.append = append
""",
    ),
}
IMPORTS = """
import contextlib, types
from jaxunlearn.core import disk
from jaxunlearn.exact import ledger, service
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGE)
def test_what_breaks_the_contract_is_noticed(name, tmp_path):
    (verb, trials, steps), message, code = SABOTAGE[name]
    options = ("--verb", verb, "--trials", trials, "--steps", steps, "--real", 0)
    failed, summary = run(tmp_path, *options, before=IMPORTS + code)
    assert failed == 1 and any(message in text for text in summary[verb]["violations"])
