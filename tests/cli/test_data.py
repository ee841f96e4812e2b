"""Data sets on the command line: what a user does wrong, and what the message says."""

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.cli import app


def folder_of_images(path, sizes):
    for i, size in enumerate(sizes):
        place = path / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(place / f"{i}.png")


def not_prepared(folder):
    return "cifar10", ["tfds build cifar10 --file_format=array_record", "prepared there: none"]


def truncated(folder):
    folder_of_images(folder / "cut", [(32, 32)] * 4)
    file = folder / "cut" / "class1" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    return "cut", ["3.png"]


def foreign(folder):
    (folder / "notes.npz").write_text("not an archive")
    return "notes.npz", ["notes.npz"]


@pytest.mark.parametrize("case", [not_prepared, truncated, foreign])
def test_data_that_cannot_be_read(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    data, words = case(tmp_path)
    code = app.main(
        ["unlearn", "--data", data, "--data-dir", "prepared", "--n-train", "2", "--model", "cnn",
         "--forget", "random", "--forget-size", "1", "--out", "run"]
    )  # fmt: skip
    message = capsys.readouterr().err
    assert code == 2
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()
