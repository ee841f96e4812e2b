"""`jaxunlearn compare`, and the tables that it shares with `unlearn`."""

import csv
import html.parser
import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from jaxunlearn.cli import app, columns
from jaxunlearn.cli.columns import COLUMNS, GROUPS

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def row(klom, error=0.1, **more):
    return {
        "klom": {g: {"mean": klom + i, "p50": 0.0, "p95": 9.0} for i, g in enumerate(GROUPS)},
        "tests": {g: {"ks": 0.25, "ks_below_5_percent": 0.5} for g in GROUPS},
        "accuracy": dict.fromkeys(GROUPS, 0.875),
        "mia": 0.5, "epsilon": 2.0, "mia_confidence": 0.4, "ulira": None,
        "seconds": 1.0, "compile_seconds": 0.5, "cost": 0.25, "cost_shared": 0.0,
        "stderr": {
            "klom": dict.fromkeys(GROUPS, error), "accuracy": dict.fromkeys(GROUPS, 0.003),
            "mia": 0.01, "epsilon": 0.2, "mia_confidence": 0.01, "ulira": None,
        },
    } | more  # fmt: skip


def results(n_models=20, seed=0, floor=1.0, **methods):
    return {
        "schema": 1,
        "n_models": n_models,
        "methods": {"none": row(9.0), "retrain": row(1.05), **methods},
        "floor": {g: {"mean": floor, "stderr": 0.05} for g in GROUPS},
        "forget_set": {"kind": "files", "size": 3, "indices": [1, 2, 3]},
        "settings": {"data": "photos", "model": "cnn", "seed": seed, "forget_sha256": "a",
                     "n_models": n_models, "methods": {"none": {}}},
    }  # fmt: skip


def write(folder, content, figure=PNG):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    if figure:
        (folder / "figure.png").write_bytes(figure)
    return str(folder)


def said(given, *names):
    console = Console(file=io.StringIO(), width=120)
    columns.show(console, given, names)
    return console.file.getvalue()


def test_errors_stand_beside_means_and_every_column_has_a_legend():
    out = said(results())
    assert "9.00±.10" in out and "87.5±.3" in out and "0.500±.010" in out and "2.00±.20" in out
    for column in columns.SHOWN:
        assert column.legend in out
    assert "… " not in out and max(map(len, out.split("KLOM   ")[0].splitlines())) <= 120
    old = results()
    for one in (*old["methods"].values(), *old["floor"].values()):
        del one["stderr"]
    assert "±" not in said(old) and "9.00" in said(old)


def test_few_models_are_said_to_be_few():
    out = said(results(20))
    assert "20 models a side are few" in out and "the first 1.00 are noise" in out
    assert "less than 0.28 are not told apart" in out  # twice the error of a difference
    assert "as retraining: retrain." in out and "says nothing about methods" not in out
    assert "are few" not in said(results(100))
    lost = said(results(2, none=row(1.1)))
    assert "Doing nothing is not told from retraining either" in lost


def test_further_columns_on_request():
    assert columns.COLUMNS["ulira"].legend not in said(results())
    out = said(results(mine=row(2.0, ulira=0.75)), "ulira", "ks_forget")
    assert "0.750" in out and "0.250" in out and columns.COLUMNS["ulira"].legend in out
    assert all(column.legend in said(results(), "all") for column in COLUMNS.values())
    with pytest.raises(ValueError, match="columns has 'beauty'; all and klom_forget, klom_retain"):
        columns.check(["ulira", "beauty"])


def test_where_a_method_comes_from_is_said():
    given = results() | {"plugins": {"mine": {"file": "my.py", "sha256": "ab" * 32}}}
    assert "mine is my.py, sha256 abababababababab" in said(given)


@pytest.fixture
def runs(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    first = write(tmp_path / "first", results())
    other = results(100, seed=7, floor=0.35, mine=row(3.0, ulira=0.625))
    other["settings"]["data"] = evil
    return [first, write(tmp_path / "other", other, figure=b"no picture")], evil


def test_runs_are_merged(runs, tmp_path, capsys):
    paths, _ = runs
    assert app.main(["compare", *paths, "--csv", str(tmp_path / "o.csv")]) == 0
    out = capsys.readouterr().out
    assert "mine" in out and "first" in out and "other" in out
    assert "seed: first 0, other 7" in out and "different numbers of models" in out
    table = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert [(r["run"], r["method"]) for r in table] == [
        *(("first", m) for m in ("none", "retrain", "floor")),
        *(("other", m) for m in ("none", "retrain", "mine", "floor")),
    ]
    mine = table[5]
    assert float(mine["klom_forget"]) == 3 and float(mine["klom_forget_stderr"]) == 0.1
    assert float(mine["accuracy_val"]) == 0.875 and float(mine["ulira"]) == 0.625
    assert mine["seed"] == "7" and mine["models"] == "100" and table[0]["ulira"] == ""
    # A file of results does as well as its folder.
    assert app.main(["compare", f"{paths[0]}/results.json"]) == 0


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "circle", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_escaped_and_needs_nothing_else(runs, tmp_path):
    paths, evil = runs
    file = tmp_path / "o.html"
    assert app.main(["compare", *paths, "--html", str(file)]) == 0
    page = Page(file.read_text())
    assert not page.open
    assert evil in "".join(page.text) and evil not in file.read_text()
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and tags.count("svg") == 2
    sources = [attrs["src"] for tag, attrs in page.tags if "src" in attrs]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert not [attrs for tag, attrs in page.tags if "href" in attrs or tag in ("link", "iframe")]
    assert not re.search("https?:", file.read_text())
    heads = [attrs for tag, attrs in page.tags if tag == "th" and attrs.get("scope") == "col"]
    assert {"U-LiRA", "KLOM forget"} <= {text.strip() for text in page.text}
    assert any(attrs.get("title") == COLUMNS["klom_forget"].legend for attrs in heads)


def test_settings_of_a_method_that_one_run_lacks_are_no_difference(tmp_path, capsys):
    one, other = results(), results()
    one["settings"]["methods"] = {"scrub": {"alpha": 1}, "ssd": {"lam": 1}}
    other["settings"]["methods"] = {"scrub": {"alpha": 2}}
    assert app.main(["compare", write(tmp_path / "a", one), write(tmp_path / "b", other)]) == 0
    out = capsys.readouterr().out
    assert "methods.scrub.alpha: a 1, b 2" in out and "lam" not in out


def test_different_forget_sets_are_no_comparison(tmp_path, capsys):
    other = results()
    other["settings"]["forget_sha256"] = "b"
    paths = write(tmp_path / "a", results()), write(tmp_path / "b", other)
    assert app.main(["compare", *paths]) == 0
    assert "The runs forget different examples" in capsys.readouterr().out


def test_names_that_are_alike(tmp_path, capsys):
    paths = write(tmp_path / "x" / "run", results()), write(tmp_path / "y" / "run", results(50))
    assert app.main(["compare", *paths]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert "n_models: " in out and f"{paths[1]} 50" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs is empty"),
        (["none"], "run is 'none', which is not there"),
        (["begun"], "run is 'begun', which is not finished, or no run"),
        (["good", "good"], "names one twice"),
        (["broken"], "cannot be read"),
        (["deep"], "cannot be read"),
        (["attribute"], "holds no results of `jaxunlearn unlearn`"),
        (["strings"], "holds no results of `jaxunlearn unlearn`"),
        (["good", "--columns", "beauty"], "columns has 'beauty'"),
        (["good", "--csv", "no/such/file.csv"], "csv is 'no/such/file.csv'"),
        (["good", "--html", "good"], "html is 'good'"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    write(tmp_path / "good", results())
    write(tmp_path / "attribute", {"lds": {}, "settings": {}})
    strings = results()
    strings["methods"]["none"]["klom"]["forget"]["mean"] = "9"
    write(tmp_path / "strings", strings)
    (tmp_path / "begun").mkdir()
    for name, text in (("broken", "{"), ("deep", "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert app.main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_it_needs_no_jax(tmp_path):
    path = write(tmp_path / "run", results())
    code = (
        "import sys; from jaxunlearn.cli import app\n"
        f"assert app.main(['compare', {path!r}, '--html', {str(tmp_path / 'o.html')!r}]) == 0\n"
        "assert not {'jax', 'flax', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_without_a_verb_there_is_help_and_a_mistake(capsys):
    for argv in ([], ["exact"]):
        assert app.main(argv) == 2
        out, err = capsys.readouterr()
        assert "usage: jaxunlearn" in out and "known verbs" in err
