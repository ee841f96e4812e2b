"""What is to be forgotten, as a user names it."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.comparison import Settings, forgetting
from jaxunlearn.data import Dataset

N, M = 12, 4  # of 16 images in one piece


def dataset(classes=("1", "10", "2"), sizes=None):
    rows = np.random.default_rng(0).permutation(N + M)
    x = rows[:, None, None, None].astype(np.float32) / 16 * np.ones((2, 2, 1), np.float32)
    y = (rows % 3).astype(np.int32)
    files = tuple(f"{(classes or 'abc')[r % 3]}/{r:02d}.png" for r in rows)
    return Dataset(
        "photos", x[:N], y[:N], x[N:], y[N:], 3, files[:N], files[N:], tuple(classes),
        sizes or {"all": N + M}, rows[:N], rows[N:],
    )  # fmt: skip


def named(given, **changes):
    return forgetting.chosen(Settings(data="photos", **changes), given)


@pytest.mark.parametrize("kind", ["class", "cluster"])
def test_a_class_is_known_by_its_name(kind):
    for name in ("1", "10", "2"):
        settings, data, forget = named(dataset(), forget=kind, forget_class=name)
        assert {data.files_train[i].split("/")[0] for i in forget} == {name}
        assert settings.forget_class == name and settings.forget_size == len(forget) > 0
    for name in ("0", "3", "beach"):
        with pytest.raises(ValueError, match=f"forget_class is '{name}'; .* 1, 10, 2"):
            named(dataset(), forget_class=name)


def test_a_number_counts_classes_whose_names_are_no_numbers():
    by_name = named(dataset("abc"), forget_class="c")
    by_number = named(dataset("abc"), forget_class="2")
    assert by_name[0] == by_number[0] and (by_name[2] == by_number[2]).all()
    with pytest.raises(ValueError, match="forget_class is '3'; the classes are a, b, c"):
        named(dataset("abc"), forget_class="3")
    with pytest.raises(
        ValueError, match="forget_class is 'x'; the classes are numbers from 0 to 2"
    ):
        named(dataset(()), forget_class="x")


def test_defaults_fit_the_data():
    settings, _, forget = named(dataset())
    assert settings.forget_class == "1" and settings.forget_size == len(forget) == 2
    settings, _, forget = named(dataset(), forget="random")
    assert len(forget) == N // 2


@pytest.mark.parametrize("form", ["relative", "path", "list", "ends"])
def test_named_files_are_forgotten_wherever_the_split_had_put_them(form, tmp_path, monkeypatch):
    given = dataset()
    wanted = [given.files_train[3], given.files_val[0], given.files_val[2]]
    for name in (*given.files_train, *given.files_val):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join([*wanted, ""]), "utf-8-sig")
    names = {
        "relative": wanted,
        "path": [
            f"photos/{wanted[0]}",
            str(tmp_path / "photos" / wanted[1]),
            f"./photos/{wanted[2]}",
        ],
        "list": ["list.txt"],
        "ends": [name.split("/")[1] for name in wanted],
    }
    settings, data, forget = named(given, forget_files=tuple(names[form]))
    assert sorted(data.files_train[i] for i in forget) == sorted(wanted)
    assert (settings.forget, settings.forget_size) == ("files", 3)
    assert len(data.x_train) == N and len(data.x_val) == M
    # Every row has kept its image, its label and its file.
    for x, y, files, rows in (
        (data.x_train, data.y_train, data.files_train, data.rows_train),
        (data.x_val, data.y_val, data.files_val, data.rows_val),
    ):
        assert (x[:, 0, 0, 0] * 16 == rows).all() and (y == rows % 3).all()
        assert [int(file[-6:-4]) for file in files] == rows.tolist()
    both = {*data.rows_train.tolist(), *data.rows_val.tolist()}
    assert both == set(range(N + M))
    assert given.files_val[0] == wanted[1]  # what was given is as it was


def test_files_that_cannot_be_forgotten():
    given = dataset()
    with pytest.raises(ValueError, match="has 'x.png', which is none of the 16 images"):
        named(given, forget_files=("x.png",))
    with pytest.raises(ValueError, match="no folder of images"):
        named(dataclasses.replace(given, files_train=()), forget_files=("x.png",))
    with pytest.raises(ValueError, match="which validates and is not trained on"):
        split = dataclasses.replace(given, sizes={"train": N, "val": M})
        named(split, forget_files=(given.files_val[0],))
    with pytest.raises(ValueError, match="'none.txt', which cannot be read"):
        named(given, forget_files=("none.txt",))
    with pytest.raises(ValueError, match="change places with; raise n_train|may go"):
        named(given, forget_files=(*given.files_train, given.files_val[0]))
    doubled = dataclasses.replace(given, files_train=("1/a.png", "2/a.png", *given.files_train[2:]))
    with pytest.raises(ValueError, match="'a.png', which may be 1/a.png or 2/a.png"):
        named(doubled, forget_files=("a.png",))


def test_whole_classes():
    settings, data, forget = named(dataset(), forget_classes=("10", "2"))
    assert set(data.y_train[forget]) == {1, 2} and settings.forget == "classes"
    assert (
        0 in np.delete(data.y_train, forget)
        and len(np.unique(np.delete(data.y_train, forget))) == 1
    )
    with pytest.raises(ValueError, match="forget_size is 12; the training set has 12"):
        named(dataset(), forget_classes=("1", "10", "2"))


def test_a_mask_over_training_examples_or_over_the_whole_source(tmp_path):
    file, given = tmp_path / "mask.npy", dataset()
    mask = np.zeros(N, bool)
    mask[[0, 1, 7]] = True  # as integers they would be rows 0 and 1
    np.save(file, mask)
    _, data, forget = named(given, forget="file", forget_file=str(file))
    assert data is given and forget.tolist() == [0, 1, 7]
    settings = Settings(forget="file", forget_file=str(file))
    assert forgetting.forget_set(settings, given).tolist() == [0, 1, 7]
    mask = np.zeros(N + M, bool)
    wanted = [int(given.rows_train[2]), int(given.rows_val[1])]
    mask[wanted] = True
    np.save(file, mask)
    _, data, forget = named(given, forget="file", forget_file=str(file))
    assert sorted(data.rows_train[forget].tolist()) == sorted(wanted)
    np.save(file, mask[:-1])
    with pytest.raises(ValueError, match="holds a mask of 15; there are 12 training examples"):
        named(given, forget="file", forget_file=str(file))
    used = dataclasses.replace(
        given, x_val=given.x_val[:1], y_val=given.y_val[:1], files_val=given.files_val[:1],
        rows_val=given.rows_val[:1],
    )  # fmt: skip
    np.save(file, mask)
    with pytest.raises(ValueError, match="marks 1 examples that are neither trained on nor"):
        named(used, forget="file", forget_file=str(file))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget": "files"}, "forget is 'files', but forget_files is not given"),
        ({"forget": "classes"}, "forget is 'classes', but forget_classes is not given"),
        ({"forget": "file"}, "forget is 'file', but forget_file is not given"),
        ({"forget_file": "f.txt"}, "but forget is 'cluster'; set forget to 'file'"),
        ({"forget": "random", "forget_files": ("a",)}, "but forget is 'random'"),
        ({"forget_classes": ("1",), "forget_files": ("a",)}, "or something else is named, too"),
        ({"forget": "half"}, "forget is 'half'"),
        ({"forget_size": 99}, "forget_size is 99"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        named(dataset(), **changes)
