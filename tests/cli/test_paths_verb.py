"""The verb `paths`."""

import json

import pytest

pytest.importorskip("tokenizers")

from jaxunlearn.cli import app  # noqa: E402
from tests import language as tiny  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


def arguments(model, out):
    stages = ["--stages", "keep=compliance:C,n=4", "u=refusals,n=4", "--forget", "u"]
    sizes = ["--rank", "2", "--batch-size", "2", "--unlearn-batch-size", "2", "--probe", "2"]
    where = ["--model", str(model), "--max-tokens", "200", "--out", str(out)]
    return ["paths", *stages, *sizes, "--losses", "ga", *where]


def test_a_study_prints_a_table_and_writes_its_files(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert app.main([*arguments(model, out), "--json", str(tmp_path / "copy.json")]) == app.OK
    printed = capsys.readouterr().out
    assert "keep > u" in printed and "u > keep" in printed
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads((tmp_path / "copy.json").read_text())
    assert results["stage_runs"] == 4 and list(results["losses"]) == ["ga"]
    assert (out / "figure.png").stat().st_size > 10_000
    assert app.main(arguments(model, out)) == app.USAGE
    assert "holds a run; resume it" in capsys.readouterr().err
    assert app.main([*arguments(model, out), "--resume"]) == app.OK
    again = json.loads((out / "results.json").read_text())
    assert again["losses"] == results["losses"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--forget", "x"], "forget is 'x'; the stages are keep, u"),
        (["--model", "nowhere"], "model is 'nowhere', which does not exist"),
        (["--rank", "500"], "rank is 500"),
        (["--theory"], "theory is given with settings of a study"),
        (["--model-shards", "3"], "model_shards is 3"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(model, more, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert app.main([*arguments(model, out), *more]) == app.USAGE
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_theory_needs_no_model(tmp_path, capsys):
    assert app.main(["paths", "--theory", "--out", str(tmp_path / "out")]) == app.OK
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["divergence"]["violations"] == 0
    out, err = capsys.readouterr()
    assert "linear theory" in out and "200 of 200" in out
    assert "phases 1/1" in err
    assert (tmp_path / "out" / "figure.png").exists()
