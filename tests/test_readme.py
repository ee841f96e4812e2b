"""The README shows what the committed results say."""

import dataclasses
import json
import re
from pathlib import Path

from experiments.fill_readme import filled
from jaxunlearn.unlearn import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_records():
    assert filled(README) == README


def test_the_default_run_shows_what_was_asked():
    results = json.loads((ROOT / "experiments/digits/results.json").read_text())
    klom = {name: row["klom"] for name, row in results["methods"].items()}
    assert klom["none"]["forget"]["mean"] >= 5 * klom["retrain"]["forget"]["mean"]
    for group, floor in results["floor"].items():
        assert abs(klom["retrain"][group]["mean"] - floor["mean"]) <= 3 * floor["stderr"]
        for row in klom.values():
            assert row[group]["mean"] >= floor["mean"] - 3 * floor["stderr"]


def test_the_default_settings_are_those_that_were_chosen():
    rows = json.loads((ROOT / "experiments/digits/choose.json").read_text())["rows"]
    by_method: dict[str, list] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    assert set(by_method) == set(METHODS) - {"none", "retrain", "dm_direct"}
    for method, own in by_method.items():
        assert len(own) == 9  # the same budget for each
        best = min(own, key=lambda row: row["score"])["settings"]
        assert json.loads(json.dumps(dataclasses.asdict(METHODS[method][1]))) == best


def test_the_default_run_takes_as_long_as_the_readme_says():
    results = json.loads((ROOT / "experiments/digits/results.json").read_text())
    said = int(re.search(r"whole command takes\s+about (\d+) seconds", README).group(1))
    assert abs(results["wall_seconds"] - said) < 10
