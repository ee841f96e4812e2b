"""The READMEs show what the committed results say, and point to what is there."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from experiments.fill_readme import FRONT_ROWS, TABLES, filled
from jaxunlearn.unlearn import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
READMES = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "benchmarks/README.md")
    + tuple(ROOT.glob("jaxunlearn/**/README.md"))
    + tuple(ROOT.glob("experiments/**/README.md"))
)


@pytest.mark.parametrize("readme", TABLES)
def test_the_tables_are_those_of_the_records(readme):
    text = (ROOT / readme).read_text()
    assert set(re.findall(r"<!-- table: (.*) -->", text)) == set(TABLES[readme])
    assert filled(readme, text) == text


def test_every_record_is_shown():
    shown = {mark for marks in TABLES.values() for mark in marks}
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("benchmarks/results/*.json")} <= shown
    for folder in ROOT.glob("experiments/*/"):
        if any(folder.glob("*.json")):
            text = (folder / "README.md").read_text()
            assert not [p.name for p in folder.glob("*.json") if f"({p.name})" not in text]


def test_the_front_page_is_short_and_shows_a_row_that_is_lost():
    assert len(README.splitlines()) <= 250
    table = README.split("<!-- table: benchmarks/results -->")[1].split("<!-- end")[0]
    ratios = [float(row.split(" | ")[3].rstrip("x")) for row in table.strip().splitlines()[2:]]
    assert len(ratios) == len(FRONT_ROWS) == 6
    assert min(ratios) < 1


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_images_are_there(readme):
    text = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (readme.parent / path).resolve() if path else readme
            assert file.is_relative_to(ROOT) and file.exists(), target
            assert not anchor or anchor in anchors(file), target


def anchors(file):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
    for method, rows in by_method.items():
        assert len(rows) == 9  # the same budget for each
        best = min(rows, key=lambda row: row["score"])["settings"]
        assert json.loads(json.dumps(dataclasses.asdict(METHODS[method][1]))) == best


def test_the_default_run_takes_as_long_as_the_readme_says():
    rows = json.loads((ROOT / "benchmarks/results/first_run.json").read_text())["rows"]
    said = re.search(r"takes\s+about\s+(\d+)\s+seconds the first time and (\d+)", README)
    assert said is not None
    for row, seconds in zip(rows, said.groups(), strict=True):
        assert abs(row["wall_seconds"] - int(seconds)) < 1
