"""`jaxunlearn unlearn` on a user's own pictures and with a user's own method."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

import jaxunlearn
from jaxunlearn.cli import app, attribute, compact, study, unlearn
from jaxunlearn.core.study import Where

SIDE = jaxunlearn.data.DEFAULT_SIZE
QUICK = [
    "--n-models", "2", "--lane-width", "2", "--training.epochs", "1", "--training.batch-size", "10",
]  # fmt: skip
PLUGIN = '''
import dataclasses
import jax.numpy as jnp
from jaxunlearn.unlearn import Unlearned

@dataclasses.dataclass(frozen=True)
class Shift:
    """Settings of `shift_all`.

    Attributes:
        amount: added to every weight.
        steps: none are needed.
    """
    amount: float = -0.5
    steps: int = 0

def shift_all(model, params, stats, problem, key, *, amount, steps):
    import jax
    moved = jax.tree.map(lambda leaf: leaf + amount, params)
    return Unlearned(moved, stats, jnp.zeros(steps), 0)
'''


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """30 pictures of several sizes in three classes whose names are numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(30):
        place = tmp_path / "photos" / ("1", "10", "2")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        shape = (*rng.integers(6, 14, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path


def test_three_named_pictures_are_forgotten_and_weights_are_used(photos, capsys):
    there = sorted(photos.glob("photos/*/*"), key=lambda file: (int(file.parent.name), file.name))
    files = [file.relative_to(photos).as_posix() for file in there]
    order = np.random.default_rng(0).permutation(30)
    wanted = [files[order[-1]], *(files[i] for i in order[:2])]  # the first would validate
    base = ["unlearn", "--data", "photos", "--size", "8", *QUICK, "--methods", "ascent"]
    more = ["--forget-files", *wanted, "--save", "ascent", "--out", "run"]
    assert app.main([*base, *more]) == 0
    out, err = capsys.readouterr()
    assert "photos: 30 images of 3 classes (1, 2, 10) are there; 24 train, 6 validate" in err
    assert "to be forgotten: 3 (files)" in err
    assert "2 models a side are few" in out and "standard error" in out
    results = json.loads((photos / "run" / "results.json").read_text())
    trained = results["files"]["train"]
    forgotten = [f"photos/{trained[i]}" for i in results["forget_set"]["indices"]]
    assert sorted(forgotten) == sorted(wanted)
    assert len(trained) == 24 and len(results["files"]["val"]) == 6
    model, params, stats = jaxunlearn.load(photos / "run" / "weights" / "ascent.safetensors", 1)
    x = jaxunlearn.data.load(photos / "photos", size=8).x_val
    assert model.apply(params, stats, x)[0].shape == (6, 3)
    assert app.main(["compare", "run", "--html", "page.html"]) == 0
    assert "data:image/png;base64," in (photos / "page.html").read_text()


def test_defaults_come_from_the_data(photos, capsys):
    argv = ["--data", "photos", "--size", "8", *QUICK]
    job = unlearn.prepare(study.parse(unlearn.Unlearn, "unlearn", argv), Where(photos / "run"))
    assert job.settings.forget_class == "1" and job.settings.n_train == 24
    assert "to be forgotten: 4 of class 1 (cluster)" in capsys.readouterr().err
    assert set(job.dataset.y_train[np.asarray(job.problem.forget)]) == {0}


def test_pictures_of_several_sizes_need_no_option(photos, capsys):
    said = f"pictures have several sizes, .* scaled to {SIDE}x{SIDE}"
    for verb, prepare, options in [
        ("unlearn", unlearn.prepare, unlearn.Unlearn),
        ("attribute", attribute.prepare, attribute.Attribute),
        ("compact", compact.prepare, compact.Compact),
    ]:
        argv = [
            "--data",
            "photos",
            *(["--shown", "2", "--training.batch-size", "8"] if verb == "attribute" else []),
        ]
        job = prepare(study.parse(options, verb, argv), Where(photos / verb))
        assert job.dataset.x_train.shape[1:] == (SIDE, SIDE, 3)
        assert (
            job.settings.size
            == SIDE
            == json.loads((photos / verb / "settings.json").read_text())["settings"]["size"]
        )
        assert re.search(said, capsys.readouterr().err)


def test_a_method_from_a_file(photos, capsys):
    (photos / "my_methods.py").write_text(PLUGIN)
    base = ["unlearn", "--n-train", "200", "--forget-size", "4", *QUICK, "--methods", "none"]
    mine = ["--plugin", "my_methods.py", "--shift-all.amount", "-1.5"]
    assert app.main([*base, *mine, "--out", "run", "--columns", "all"]) == 0
    digest = hashlib.sha256(PLUGIN.encode()).hexdigest()
    out = capsys.readouterr().out
    assert f"shift_all is my_methods.py, sha256 {digest[:16]}" in out and "Renyi-2" in out
    results = json.loads((photos / "run" / "results.json").read_text())
    assert list(results["methods"]) == ["none", "retrain", "shift_all"]
    assert results["plugins"] == {"shift_all": {"file": "my_methods.py", "sha256": digest}}
    settings = results["settings"]["methods"]["shift_all"]
    assert settings["amount"] == -1.5 and settings["plugin"]["sha256"] == digest
    assert app.main([*base, *mine, "--out", "run", "--resume"]) == 0
    (photos / "my_methods.py").write_text(PLUGIN + "\n# changed\n")
    capsys.readouterr()
    assert app.main([*base, *mine, "--out", "run", "--resume"]) == 2
    assert "shift_all.plugin.sha256 = " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app.main([*base, "--plugin=my_methods.py", "--help"])
    assert "--shift-all.amount" in capsys.readouterr().out


BAD = {
    "not there": ("", ["--plugin", "none.py"], "plugin 'none.py' cannot be read"),
    "no Python": ("x = (", ["--plugin", "p.py"], "plugin 'p.py' cannot be run: line 1: SyntaxErr"),
    "no method": ("x = 1", ["--plugin", "p.py"], "plugin 'p.py' needs one function"),
    "twice": (PLUGIN, ["--plugin", "p.py", "q.py"], "two methods of the name 'shift_all'"),
    "no options": (
        PLUGIN.replace("steps: int = 0", "steps: nope = 0"),
        ["--plugin", "p.py"],
        "plugin 'p.py' cannot be run: line 15: NameError: name 'nope' is not defined",
    ),
    "fails": (
        PLUGIN.replace("jnp.zeros(steps), 0)", "jnp.zeros(steps))"),
        ["--plugin", "p.py"],
        "shift_all fails: line 20: TypeError",
    ),
    "other weights": (
        PLUGIN.replace("moved, stats", "{}, stats"),
        ["--plugin", "p.py"],
        "shift_all gives params of other names",
    ),
    "nothing to save": ("", ["--save", "dmm"], "save has 'dmm'; the methods of this run are"),
    "columns": ("", ["--columns", "beauty"], "columns has 'beauty'"),
    "size": ("", ["--size", "0"], "size is 0"),
    "files": ("", ["--forget-files", "a.png"], "forget_files is given; digits is no folder"),
    "a class": ("", ["--forget-class", "cat"], "forget_class is 'cat'; the classes are numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_said_before_anything_runs(case, tmp_path, monkeypatch, capsys):
    text, arguments, message = BAD[case]
    for name in ("p.py", "q.py") if text else ():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert app.main(["unlearn", "--n-train", "200", "--forget-size", "4", *QUICK, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["1", "10", "2"])
def test_classes_are_known_by_their_names(name, photos, capsys):
    arguments = ["unlearn", "--data", "photos", "--size", "8", "--forget-class", name]
    # Ends after the settings have been checked: nothing may be trained with one model.
    assert app.main([*arguments, "--forget-size", "99"]) == 2
    assert f"forget_size is 99; class {name} has" in capsys.readouterr().err
    assert app.main(["unlearn", "--data", "photos", "--size", "8", "--forget-class", "0"]) == 2
    assert "forget_class is '0'; the classes are 1, 2, 10" in capsys.readouterr().err
