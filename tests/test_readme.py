"""The README shows what the committed results say."""

import dataclasses
import io
import json
import re
from pathlib import Path

from rich.console import Console

from jaxunlearn.unlearn import METHODS, report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_printed_table_is_that_of_the_results():
    results = json.loads((ROOT / "experiments/digits/results.json").read_text())
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table(results))
    printed = [line.rstrip() for line in console.file.getvalue().splitlines()]
    shown = re.search(r"results.json -->\n```text\n(.*?)\n```", README, re.S).group(1)
    assert [line.rstrip() for line in shown.rstrip().splitlines()] == printed[:-1]


def test_the_benchmark_table_is_that_of_the_records():
    shown = re.search(r"benchmarks/results -->\n(.*?)\n\n", README, re.S).group(1)
    lines = shown.splitlines()[2:]
    expected = []
    for name in ("ensemble", "klom"):
        record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
        for row in record["rows"]:
            expected.append((row["name"], f"{row['ours']['steady']:.2f} s", f"{row['ratio']:.1f}x"))
    assert len(lines) == len(expected)
    for line, cells in zip(lines, expected, strict=True):
        for cell in cells:
            assert cell in line


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
    assert set(by_method) == set(METHODS) - {"none", "retrain"}
    for method, own in by_method.items():
        assert len(own) == 9  # the same budget for each
        best = min(own, key=lambda row: row["score"])["settings"]
        assert json.loads(json.dumps(dataclasses.asdict(METHODS[method][1]))) == best


def test_the_default_run_takes_as_long_as_the_readme_says():
    results = json.loads((ROOT / "experiments/digits/results.json").read_text())
    said = int(re.search(r"whole command takes\s+about (\d+) seconds", README).group(1))
    assert abs(results["wall_seconds"] - said) < 10
