"""`jaxunlearn exact` as a user types it."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxunlearn.cli import app
from jaxunlearn.nn.images import vit

SMALL = (
    *("--n-train", "200", "--n-val", "50", "--shards", "2", "--slices", "2", "--budget", "2"),
    *("--sizes.width", "16", "--sizes.layers", "4", "--sizes.heads", "2"),
    *("--sizes.mlp-width", "16", "--recipe.rank", "2", "--recipe.epochs", "1"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    store = tmp_path_factory.mktemp("exact") / "store"
    assert app.main(["exact", "train", str(store), *SMALL, "--json", str(store) + ".json"]) == 0
    return store


def run(*arguments, code=0):
    assert app.main(["exact", *map(str, arguments)]) == code


def read(tmp_path, *arguments):
    file = tmp_path / "out.json"
    run(*arguments, "--json", file)
    return json.loads(file.read_text())


def test_pictures_of_several_sizes_need_no_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(24):
        place = tmp_path / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (*rng.integers(6, 14, 2), 3), np.uint8)
        Image.fromarray(picture).save(place / f"{i:02d}.png")
    options = ["--data", "photos", "--shards", "1", "--slices", "2", "--budget", "1", *SMALL[10:]]
    run("train", "store", *options)
    assert "pictures have several sizes" in capsys.readouterr().err
    picture = next((tmp_path / "photos" / "a").iterdir())
    assert read(tmp_path, "predict", "store", picture)
    run("train", "store", *options)
    run("train", "store", *options, "--size", "16", code=2)
    assert "size" in capsys.readouterr().err


def test_a_life_of_a_store(trained, tmp_path, capsys):
    status = read(tmp_path, "status", trained)
    assert status["stages_left"] == [[2, 2], [2, 2]] and status["deleted"] == 0
    assert status["examples"] == 140  # 200 less the public 30 %
    before = (trained / "ledger.jsonl").read_bytes()
    run("train", trained, *SMALL)  # nothing is left to do
    assert (trained / "ledger.jsonl").read_bytes() == before

    accuracy = read(tmp_path, "predict", trained)
    assert accuracy["n"] == 50 and 0 <= accuracy["accuracy"] <= 1
    victim = json.loads((trained / "examples.json").read_text())["ids"][0]
    assert (status["public"], status["validation"]) == (60, 50)
    assert "140 examples are stored; 60 are public, the base learns them; 50 validate" in (
        capsys.readouterr().out
    )
    (outcome,) = read(tmp_path, "delete", trained, victim, "--who", "someone")
    assert outcome["example"] == victim and not outcome["repeated"]
    cost = outcome["cost"]
    assert cost["slices"] == [outcome["slice"]] and 1 <= cost["examples_given_up"] < 140
    assert (cost["stages_lost"], cost["stages_left"], cost["serves"]) == (3, 1, [2, 1])
    assert f"cost in shard {outcome['shard']}: slice {outcome['slice']} with" in (
        capsys.readouterr().out
    )
    again = read(tmp_path, "delete", trained, victim)[0]
    assert again["repeated"] and again["cost"] is None
    left = read(tmp_path, "status", trained)["stages_left"]
    assert sorted(left[outcome["shard"]]) == [0, 1] and left[1 - outcome["shard"]] == [2, 2]
    assert not read(tmp_path, "status", trained)["needs_retraining"]
    assert read(tmp_path, "status", trained, "--trigger", "any", "--depth", 2)["needs_retraining"]
    assert read(tmp_path, "verify", trained)["prefix"] is None
    assert read(tmp_path, "verify", trained, "--retrain")["prefix"] == [1 - outcome["shard"], 0, 2]
    assert read(tmp_path, "repair", trained)["stages_left"] == [[2, 2], [2, 2]]
    prefix = (outcome["shard"], 1, 2)
    assert read(tmp_path, "verify", trained, "--retrain", "--prefix", *prefix)["prefix"] == [
        *prefix
    ]
    assert "someone" in (trained / "ledger.jsonl").read_text()
    assert "had been deleted before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "STORE"], 0),
        (["delete", "STORE", "train-0"], 0),
        (["delete", "STORE", "nothing"], 2),
        (["status", "NEW"], 2),
        (["--help"], 0),
        (["forget"], 2),
    ],
)
def test_what_reads_only_the_ledger_is_light(tmp_path, arguments, code):
    old = Path(__file__).parents[1] / "exact" / "stores" / "digits"
    places = {"STORE": str(shutil.copytree(old, tmp_path / "store")), "NEW": str(tmp_path / "new")}
    argv = [places.get(argument, argument) for argument in arguments]
    program = (
        "import sys; from jaxunlearn.cli import app\n"
        f"code = app.main(['exact', *{argv!r}])\n"
        "names = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'scipy', 'sklearn', 'matplotlib'}\n"
        "print('loaded', sorted(names & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_images_are_answered_to(trained, tmp_path):
    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 8), 100 * i, np.uint8)).save(files[-1])
    answers = read(tmp_path, "predict", trained, *files)
    assert [answer["file"] for answer in answers] == [str(file) for file in files]
    assert all(len(answer["logits"]) == 10 for answer in answers)


def test_the_planner_knows_the_paper(tmp_path, capsys):
    rows = read(tmp_path, "plan", "--shards", 5, "--slices", 4, 2, "--budget", 1, 4)
    assert [row["requests"] for row in rows[:2]] == pytest.approx([45.667, 71.955], abs=1e-3)
    assert [(row["n_slices"], row["budget"]) for row in rows] == [(4, 1), (4, 4), (2, 1)]
    assert rows[1]["stages"] == 80 and rows[1]["bytes"] == 4 * rows[0]["bytes"]
    assert "gain" in capsys.readouterr().out


def test_the_planner_reads_no_weights(tmp_path):
    pytest.importorskip("tokenizers")
    from tests import language

    images, texts = tmp_path / "images", language.save(tmp_path / "texts")
    config = vit.Config((8, 8, 1), 4, 8, 4, 2, 8, 2)
    vit.save_pretrained(images, config, jax.jit(vit.build(config).init)(jax.random.key(0))[0])
    for base in (images, texts):
        options = ("--slices", 2, "--budget", 2, "--rank", 2, "--base", base)
        before = read(tmp_path, "plan", *options)
        (base / "model.safetensors").unlink()
        assert read(tmp_path, "plan", *options) == before and before[0]["bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delete", "STORE", "image-1"], "id 'image-1' is unknown"),
        (["delete", "STORE"], "ids is empty"),
        (["delete", "STORE", "--group", "nobody"], "group 'nobody' is unknown"),
        (["delete", "NEW", "train-1"], "holds no store"),
        (["status", "NEW"], "holds no store"),
        (["status", "STORE", "--depth", "0"], "depth 0"),
        (["status", "STORE", "--depth", "3"], "depth is 3; orders have 2 stages"),
        (["train", "NEW", "--shards", "300"], "300 and 4: 1200 slices of 840 examples; there must"),
        (["train", "STORE", "--seed", "1"], "has n_train = 200"),
        (["train", "NEW", "--data", "nothing"], "data is 'nothing'"),
        (["train", "NEW", "--budget", "25"], "budget is 25; 4 slices have 1 to 4! orders"),
        (["train", "NEW", "--slices", "9", "--budget", "1"], "slices is 9; the network has 8"),
        (["train", "NEW", "--public", "0"], "public is 0.0"),
        (["train", "NEW", "--shards", "0"], "shards and slices are 0 and 4"),
        (["train", "NEW", "--capacity", "20"], "the plan's capacity is 20"),
        (["train", "NEW", "--sizes.patches", "3"], "sizes.patches is 3; it must divide"),
        (["train", "NEW", "--data", "tofu:full"], "texts need a language model"),
        (["train", "NEW", "--base", "NEW"], "new', which is not there"),
        (
            ["delete", "STORE", "train-1", "--json", "NEW/no/x.json"],
            "a file in a folder that can be written",
        ),
        (["verify", "STORE", "--prefix", "0", "0", "1"], "prefix is given without retrain"),
        (["verify", "STORE", "--retrain", "--prefix", "0", "0", "9"], "stages left"),
        (["predict", "STORE", "NEW/a.png"], "is no file"),
        (["plan", "--budget", "0"], "budget is 0"),
        (["plan", "--budget", "3", "--slices", "2"], "slices [2] have fewer orders"),
        (["plan", "--sizes.patches", "0"], "sizes.patches is 0; it must divide"),
        (["plan", "--layers-per-slice", "0"], "layers_per_slice is 0"),
        (["train", "NEW", "--seed", "-1"], "seed is -1"),
        (["train", "NEW", "--recipe.rank", "99"], "rank is 99; layers/q/kernel allows 1 to 64"),
        (["train", "NEW", "--capacity", "0"], "capacity is 0"),
        (["train", "NEW", "--n-train", "1"], "public is 0.3; of 1 images that is 0"),
        (["train", "NEW", "--data", "NEW/no.jsonl"], "there is no such file"),
        (["forget", "STORE"], "exact: verb is 'forget'; known verbs: plan, train"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(trained, tmp_path, capsys, arguments, message):
    places = {"STORE": trained, "NEW": tmp_path / "new"}
    before = (trained / "ledger.jsonl").read_bytes()
    run(*(str(places.get(a, a)).replace("NEW", str(tmp_path)) for a in arguments), code=2)
    assert message in capsys.readouterr().err
    assert (trained / "ledger.jsonl").read_bytes() == before
    assert not (tmp_path / "new").exists() and not (tmp_path / ".new.new").exists()


def test_a_damaged_store_is_a_failure_that_names_the_file(trained, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(trained, store)
    file = sorted((store / "orders").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    run("verify", store, code=1)
    assert file.name in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from jaxunlearn.exact import opening

    real, store = opening.pretrain, tmp_path / "store"

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "pretrain", stop)
    run("train", store, *SMALL, code=130)
    assert f"jaxunlearn exact train {store}" in capsys.readouterr().err
    monkeypatch.setattr(opening, "pretrain", real)
    run("train", store, *SMALL)


@pytest.mark.slow
def test_a_language_model_forgets_a_group(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    from tests import language

    model, store = language.save(tmp_path / "model"), tmp_path / "store"
    texts = tmp_path / "facts.jsonl"
    rows = [
        {"question": f"Who is {i}?", "answer": f"Author {i}.", "group": f"author-{i // 3}"}
        | {"id": f"fact-{i}"}
        for i in range(24)
    ]

    def write(file, rows):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(texts, rows)
    sizes = ("--shards", "2", "--slices", "2", "--budget", "2", "--recipe.epochs", "1")
    small = ("--recipe.batch-size", "4", "--recipe.rank", "2", "--max-tokens", 64)
    for wrong, message in (
        (("--max-answer", 1), "the answer of 'fact-0' has"),
        (("--recipe.augment", "flip"), "augment is ['flip']; it is for images"),
        (("--n-train", 25), "n_train is 25"),
    ):
        run("train", store, "--data", texts, "--base", model, *sizes, *small, *wrong, code=2)
        assert message in capsys.readouterr().err
        assert not store.exists()
    small = (*small, "--max-answer", 16)
    run("train", store, "--data", texts, "--base", model, *sizes, *small)
    (model / "model.safetensors").unlink()  # the store has the weights; texts need the tokenizer
    outcomes = read(tmp_path, "delete", store, "--group", "author-2")
    assert [outcome["example"] for outcome in outcomes] == ["fact-6", "fact-7", "fact-8"]
    write(texts, [row for row in rows if row["group"] != "author-2"])  # erased for good
    assert read(tmp_path, "repair", store)["stages_left"] == [[2, 2], [2, 2]]
    assert read(tmp_path, "verify", store, "--retrain")["prefix"] == [0, 0, 2]
    write(tmp_path / "ask.jsonl", rows[:3])
    answers = read(tmp_path, "predict", store, tmp_path / "ask.jsonl")
    assert [answer["id"] for answer in answers] == ["fact-0", "fact-1", "fact-2"]
    assert all(answer["log_probability"] < 0 < answer["tokens"] for answer in answers)
    run("predict", store, code=2)
    assert "files is empty; a language model needs JSON-lines" in capsys.readouterr().err
    write(texts, [rows[0] | {"answer": "Nobody."}, *rows[1:]])
    run("verify", store, "--retrain", code=2)
    assert "example 'fact-0' is not what the store was made with" in capsys.readouterr().err


@pytest.mark.slow
def test_images_of_a_folder_are_known_by_their_files_and_can_be_erased(
    tmp_path, capsys, monkeypatch
):
    folder, store = tmp_path / "photos", tmp_path / "store"
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 6)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(folder / split / name / f"{i}.png")
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = ("train", store, "--data", "photos", *SMALL[4:])
    run(*command)
    assert not (tmp_path / "cache").exists()  # nothing of the images outlives them
    monkeypatch.chdir(Path(__file__).parent)
    ids = json.loads((store / "examples.json").read_text())["ids"]
    victim = ids[0]
    assert (folder / victim).is_file() and victim.startswith("train/cat/")
    before = read(tmp_path, "predict", store)
    (answer,) = read(tmp_path, "predict", store, folder / victim)
    assert answer["name"] == ("cat", "dog")[answer["class"]]
    assert f"class {answer['name']}" in capsys.readouterr().out
    public = next(
        name for i in range(40) if (name := f"train/cat/{i}.png") not in ids
    )  # which trained the base
    for name, why in (
        (public, "it is public"),
        ("test/cat/0.png", "it only validates"),
        ("train/cat/99.png", "it is no example of this store, and never was one"),
    ):
        run("delete", store, name, code=2)
        assert f"id '{name}' is unknown: {why}" in capsys.readouterr().err
    (outcome,) = read(tmp_path, "delete", store, victim)
    (folder / victim).unlink()
    for kept in set(p.name for p in (folder / "train" / "dog").iterdir()) - {
        Path(name).name for name in ids if "/dog/" in name
    }:
        (folder / "train" / "dog" / kept).unlink()  # public ones, which the store has no use for
    assert read(tmp_path, "repair", store)["stages_left"] == [[2, 2], [2, 2]]
    prefix = (outcome["shard"], 0, 2)
    assert read(tmp_path, "verify", store, "--retrain", "--prefix", *prefix)["prefix"] == [*prefix]
    assert read(tmp_path, "predict", store)["n"] == before["n"] == 12
    monkeypatch.chdir(tmp_path)
    run(*command)  # the same as before, though the folder is another one now
    folder = folder.rename(tmp_path / "moved")
    run("predict", store, code=2)
    assert "none of the store's images are there" in capsys.readouterr().err
    assert read(tmp_path, "predict", store, "--data", folder)["n"] == 12
    run("verify", store, "--retrain", "--data", folder)
    (folder / ids[1]).unlink()
    run("verify", store, "--retrain", "--data", folder, code=2)
    assert f"example '{ids[1]}' is missing, and it has not been deleted" in capsys.readouterr().err


def test_another_base_does_not_go_on_from_the_one_that_was_interrupted(tmp_path, monkeypatch):
    """It may have learned examples that the new store holds."""
    from jaxunlearn.exact import opening, pretraining, settings

    monkeypatch.setattr(pretraining, "_SECONDS", 0)
    small = settings.Settings(
        n_train=200, n_val=50, sizes=settings.Sizes(width=16, layers=4, heads=2, mlp_width=16)
    )
    folder, seen = tmp_path / "store", []

    def begin(seed, stop_at):
        seeded = dataclasses.replace(small, seed=seed)

        def progress(phase, done, total):
            seen.append(done)
            if done >= stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            opening.open_or_create(folder, seeded, progress=progress)
        return [seen.pop(0) for _ in range(len(seen))]

    assert begin(seed=0, stop_at=10)[0] == 1
    assert begin(seed=0, stop_at=12)[0] > 8  # goes on
    assert begin(seed=1, stop_at=3)[0] == 1  # begins anew


def test_a_pretrained_vit_reads_only_images_of_its_shape(tmp_path, capsys):
    base, folder, store = tmp_path / "base", tmp_path / "photos", tmp_path / "store"
    config = vit.Config((8, 8, 3), 4, 8, 4, 2, 8, 2)
    vit.save_pretrained(base, config, vit.build(config).init(jax.random.key(0))[0])
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (base / "preprocessor_config.json").write_text(json.dumps(processor))
    assert vit.normalisation(base) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / split / name / "0.png")
    run("train", store, "--data", folder, "--base", base, code=2)
    assert "image_mean has 3 values; the images have 1 channels" in capsys.readouterr().err
    for wrong in ({"image_mean": None}, {"image_std": [0.0]}, {"image_mean": [float("nan")]}):
        (base / "preprocessor_config.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"preprocessor_config.json: .*for each channel"):
            vit.normalisation(base)
    (base / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": None}))
    with pytest.raises(ValueError, match="rescaled by 1/255"):
        vit.normalisation(base)
    (base / "preprocessor_config.json").unlink()
    assert vit.normalisation(base) == ((0.5,), (0.5,))
    run("train", store, "--data", folder, "--base", base, code=2)
    assert "base reads images [8, 8, 3]" in capsys.readouterr().err
    assert not store.exists()


def test_a_group_that_is_null_is_none(tmp_path):
    from jaxunlearn.exact import material, settings
    from tests import language

    texts = tmp_path / "facts.jsonl"
    rows = [{"question": "Who?", "answer": f"{i}", "group": None, "id": None} for i in range(3)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings.Settings(data=str(texts), base=language.save(tmp_path / "model"))
    read = material.read(chosen)
    assert read.groups == read.ids == ["facts:1", "facts:2", "facts:3"]
    assert read.examples["x"].shape == (3, 256) and read.examples["labels"].shape == (3, 128)
