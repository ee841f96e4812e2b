"""`jaxunlearn compact`, as a user runs it."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data as datasets
from jaxunlearn.cli import app
from jaxunlearn.cli import compact as verb
from jaxunlearn.compact import Recipe, files, measure
from jaxunlearn.compact import study as job
from jaxunlearn.core.study import Where

QUICK = (
    "--recipe.dual-epochs 1 --recipe.unfreeze-epochs 1 --recipe.last-epochs 1 "
    "--recipe.fold-mode none --recipe.batch-size 16 --recipe.schedule last_k --filters 2 --hidden 3"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, 12 x 12, dark and light."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 6)):
        for name, level in (("dark", 40), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(level - 30, level + 30, (12, 12), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    file = out.parent / "results.json"
    arguments = ["compact", "--data", str(folder), *QUICK, "--out", str(out), "--json", str(file)]
    assert app.main(arguments) == app.OK
    return out, json.loads(file.read_text())


def test_the_results(run):
    out, results = run
    assert results["parameters"] == 2 * (20 + 19 * 4 + 5 * 2) + 5 * 3 + 4 * 2
    assert 0 <= results["test_accuracy"] <= 1
    assert results["classes"] == ["dark", "light"]
    assert np.sum(results["confusion"]) == 12
    assert results["weight_bytes"] * 2 == results["training_bytes"]
    for name, size in results["file_bytes"].items():
        assert (out / name).stat().st_size == size
    assert results["speed"]["p99_ms"] >= results["speed"]["p50_ms"] > 0
    assert set(results["seconds"]) == {"dual", "unfreeze.0", "unfreeze.1"}
    assert (out / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["model.safetensors", "model-int8.safetensors"])
def test_predict(run, folder, name, capsys, tmp_path):
    files = [str(folder / "test" / kind / "0.png") for kind in ("dark", "light")]
    answers = tmp_path / "answers.json"
    arguments = ["compact", "predict", str(run[0] / name), *files, "--json", str(answers)]
    assert app.main(arguments) == app.OK
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(answers.read_text())
    for line, own, file in zip(lines, found, files, strict=True):
        assert line.startswith(f"{file}: {own['class']} (")
        assert own["class"] in ("dark", "light")
        np.testing.assert_allclose(sum(own["probabilities"]), 1, rtol=1e-5)


def test_all_classes_of_a_folder_are_validated_and_trained(folder, tmp_path):
    """Its files come sorted by class, and the first fifth validates."""
    prepared = job.prepare(job.Settings(data=str(folder), filters=2), Where(tmp_path / "out"))
    y = prepared.dataset.y_train
    assert set(y[:12]) == set(y[12:]) == {0, 1} and sum(y) == 30
    levels = prepared.dataset.x_train.mean((1, 2, 3))
    np.testing.assert_array_equal(levels > 120, y == 1)


def test_a_finished_run_is_shown_again(run, folder, capsys):
    out, results = run
    arguments = ["compact", "--data", str(folder), *QUICK, "--out", str(out), "--resume"]
    assert app.main(arguments) == app.OK
    again = json.loads((out / "results.json").read_text())
    assert again["test_accuracies"] == results["test_accuracies"]
    assert again["unfreezing"] == results["unfreezing"]


@pytest.mark.slow
def test_interrupted_in_every_phase_it_ends_with_the_same_bits(folder, tmp_path):
    recipe = Recipe(
        schedule="last_k",
        dual_epochs=3,
        unfreeze_epochs=2,
        last_epochs=2,
        folds=2,
        fold_epochs=2,
        batch_size=16,
    )
    settings = job.Settings(data=str(folder), n_models=2, filters=2, hidden=3, recipe=recipe)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job.run(settings, out=whole)
    stops = [("dual", 1), ("dual", 2), ("unfreeze.0", 1), ("unfreeze.1", 1), ("fold", 1)]
    for stop in stops:

        def progress(phase, done, most, stop=stop):
            del most
            if (phase, done) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job.run(settings, out=parts, resume=True, progress=progress)
    job.run(settings, out=parts, resume=True)
    for name in ("model.safetensors", "model-int8.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    for name in ("dual", "unfreezing", "folds", "test_accuracies"):
        first, second = (json.loads((of / "results.json").read_text()) for of in (whole, parts))
        assert first[name] == second[name]


@pytest.mark.slow
def test_the_result_of_continued_folds_is_the_last_one(folder, tmp_path):
    options = ["--recipe.fold-mode", "continued", "--recipe.folds", "3"]
    options += ["--recipe.fold-epochs", "1", "--recipe.schedule", "out,hidden", "conv_1"]
    out, quick = tmp_path / "out", [own for own in QUICK if own not in ("last_k", "none")]
    quick = [own for own in quick if own not in ("--recipe.schedule", "--recipe.fold-mode")]
    arguments = ["compact", "--data", str(folder), *quick, *options, "--out", str(out)]
    assert app.main([*arguments, "--n-models", "2"]) == app.OK
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["recipe"]["schedule"] == [["out", "hidden"], ["conv_1"]]
    assert len(results["unfreezing"]) == 2
    assert results["folds"]["of_model"] == [2, 2]
    assert results["test_accuracies"] == [own[2] for own in results["folds"]["test"]]
    architecture, params = files.load(out / "model.safetensors")
    test = datasets.load(folder)
    answers = measure.logits_of(architecture.model, params, test.x_val).argmax(-1)
    best = results["file_is_model"]
    assert (answers == test.y_val).mean() == results["folds"]["test"][best][2]


def image(path, size=(12, 12), mode="L"):
    Image.new(mode, size).save(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: image(place / "a.png", (10, 12)), "is 10x12 .*network reads 12x12"),
        (lambda place: image(place / "a.png", mode="RGB"), "the network reads"),
        (lambda place: place / "none.png", "is no file"),
        (lambda place: place / "text.png", "text.png"),
    ],
)
def test_bad_images_of_predict(run, make, message, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    arguments = ["compact", "predict", str(run[0] / "model.safetensors"), str(make(tmp_path))]
    assert app.main(arguments) == app.USAGE
    assert_says(capsys, message)


def test_bad_models_of_predict(run, folder, tmp_path, capsys):
    file = str(folder / "test" / "dark" / "0.png")
    assert app.main(["compact", "predict", str(tmp_path / "none"), file]) == app.USAGE
    assert_says(capsys, "none is no file")
    assert app.main(["compact", "predict", str(run[0] / "results.json"), file]) == app.USAGE
    assert_says(capsys, "no safetensors file")
    assert app.main(["compact", "predict", str(run[0] / "model.safetensors")]) == app.USAGE
    assert_says(capsys, "images is empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{empty}"], "holds no folders of images"),
        (["--data", "{mixed}"], "at least 5 are needed for this recipe"),
        (["--data", "{broken}"], "broken"),
        (["--data", "{colours}", "--size", "12"], "all images must have one number of channels, c"),
        (["--size", "8"], "size is 8; 10 to 1024"),
        (["--filters", "0"], "filters is 0"),
        (["--n-models", "0"], "n_models is 0"),
        (["--data", "nothing"], "data is 'nothing'"),
        (["--n-train", "4"], "n_train is 4; at least 5"),
        (["--data", "digits", "--size", "9"], "size is 9"),
        (["--data", "{one}", "--n-train", "5"], "with one class"),
        (["--seed", "1099511627776"], "seed 1099511627776"),
        (["--network", "slim", "--channels", "0", "4"], "channels is 0"),
        (["--json", "{one}/a/0.png/results.json"], "json is"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(options, message, folder, tmp_path, capsys):
    for name, sizes in (("mixed", [(12, 12), (12, 11)]), ("broken", [(12, 12)] * 2)):
        for kind in ("a", "b"):
            (tmp_path / name / kind).mkdir(parents=True)
            for i, size in enumerate(sizes):
                image(tmp_path / name / kind / f"{i}.png", size)
    (tmp_path / "broken" / "b" / "1.png").write_text("broken")
    for kind, mode in (("a", "L"), ("b", "RGB")):
        (tmp_path / "colours" / kind).mkdir(parents=True)
        for i in range(8):
            image(tmp_path / "colours" / kind / f"{i}.png", mode=mode)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "a").mkdir(parents=True)
    for i in range(8):
        image(tmp_path / "one" / "a" / f"{i}.png", (12, 12))
    own = [
        option.format(**{n: tmp_path / n for n in ("empty", "mixed", "broken", "one", "colours")})
        for option in options
    ]
    if "--data" not in own:
        own += ["--data", str(folder)]
    if "--n-train" not in own and str(folder) not in own:
        own += ["--n-train", "3"] if "digits" not in own else []
    out = tmp_path / "out"
    assert app.main(["compact", *QUICK, *own, "--out", str(out)]) == app.USAGE
    assert_says(capsys, message)
    assert not out.exists()


def test_a_recipe_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        app.main(["compact", "--slim.warp.zoom", "-1", "--out", str(tmp_path / "out")])
    assert left.value.code == app.USAGE and not (tmp_path / "out").exists()
    assert "zoom is -1.0; it must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("resize", [[], ["--resize"]])
def test_a_folder_of_images_of_several_sizes(resize, tmp_path, capsys):
    random = np.random.default_rng(0)
    for kind, shade in (("dark", 60), ("light", 180)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(40):
            height, width = random.integers(9, 40, 2)
            pixels = np.clip(random.normal(shade, 20, (height, width)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{i}.png")
    options = ["--data", str(tmp_path / "photos"), "--n-train", "60", "--size", "12", *QUICK]
    out = tmp_path / "out"
    assert app.main(["compact", *options, "--out", str(out)]) == app.OK
    photo = image(tmp_path / "photo.png", (90, 50))
    arguments = [str(out / "model.safetensors"), str(photo), *resize]
    assert app.main(["compact", "predict", *arguments]) == (app.OK if resize else app.USAGE)
    if resize:
        assert "photo.png: dark" in capsys.readouterr().out
    else:
        assert_says(capsys, "is 90x50 .*network reads 12x12")


def test_one_process_only(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="processes: `compact` runs in one process"):
        verb.prepare(verb.Compact(), Where(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def assert_says(capsys, message):
    import re

    err = " ".join(capsys.readouterr().err.split())
    assert re.search(f"jaxunlearn: error: .*{message}", err), err


@pytest.mark.parametrize("network", ["slim", "minimal"])
@pytest.mark.slow
def test_the_other_networks(network, tmp_path):
    out = tmp_path / "out"
    options = "--n-train 100 --n-val 20 --size 18 --slim.epochs 1 --slim.batch-size 20".split()
    options += ["--channels", "3", "4"] if network == "slim" else []
    assert app.main(["compact", "--network", network, *options, "--out", str(out)]) == app.OK
    results = json.loads((out / "results.json").read_text())
    assert len(results["slim"]["accuracy"][0]) == 1
    image(tmp_path / "a.png", (18, 18))
    file = str(out / "model.safetensors")
    assert app.main(["compact", "predict", file, str(tmp_path / "a.png")]) == app.OK
