"""What goes wrong in reading a file is an error that names it; nothing else is taken for one."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.extras import MissingPackageError
from jaxunlearn.core.readers import parse_json, read_npy, read_npz, read_object, reading


class PanicException(BaseException):
    """As packages written in Rust raise."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too long"), "f.json: too long"),
        (KeyError("ids"), "f.json: 'ids' is missing in it"),
        (TypeError("no int"), r"f.json: it is not of the form .* \(TypeError: no int\)"),
        (RecursionError(), "f.json: it is nested too deeply"),
        (MemoryError(), "f.json: it asks for more memory than there is"),
        (OSError("broken data stream"), "f.json: broken data stream"),
        (zipfile.BadZipFile("no zip"), "f.json: no zip"),
        (PanicException("index"), r"f.json: .* \(PanicException: index\)"),
    ],
)
def test_a_readers_failure_names_the_file(tmp_path, error, words):
    for kind in (ValueError, DamagedError):
        with pytest.raises(kind, match=words) as caught, reading(tmp_path / "f.json", kind):
            raise error
        assert caught.value.__cause__ is error and type(caught.value) is kind


def test_what_is_named_already_stays(tmp_path):
    for what, words in ((tmp_path, f"path is {tmp_path}"), ("x", "x: no number")):
        error = ValueError(words)
        with pytest.raises(ValueError) as caught, reading(what):
            raise error
        assert caught.value is error
    with pytest.raises(ValueError, match="^x: an axis"), reading("x"):
        raise ValueError("an axis")


def test_what_is_no_failure_of_the_reader_passes(tmp_path):
    with pytest.raises(FileNotFoundError), reading("f"):
        (tmp_path / "gone").read_bytes()
    for error in (KeyboardInterrupt(), SystemExit(), MissingPackageError("it", "gguf")):
        with pytest.raises(type(error)) as caught, reading("f"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'["\\ud83d"]', r"it holds \\ud83d, half of a character"),
        (b'{"\\uDC00": 1}', r"it holds \\udc00, half of a character"),
        (b'"\xed\xa0\xbd"', "it is no text in UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b"1" * 5000, "Exceeds the limit"),
        (b"", "Expecting value"),
    ],
)
def test_texts_that_are_no_json(content, words):
    with pytest.raises(ValueError, match=f"^f, line 3: {words}"):
        parse_json(content, "f, line 3")


def test_json_as_others_write_it():
    assert parse_json('\ufeff{"a": "\\ud83d\\ude00 \\\\ud83d"}'.encode(), "f") == {
        "a": "😀 \\ud83d"
    }


def test_objects(tmp_path):
    file = tmp_path / "f.json"
    file.write_text("[1]")
    with pytest.raises(DamagedError, match="f.json: it is not a JSON object, but a list"):
        read_object(file, DamagedError)
    file.write_text(json.dumps({"a": 1}))
    assert read_object(file, most=8) == {"a": 1}
    with pytest.raises(ValueError, match="f.json: it has 8 bytes; at most 7 are read"):
        read_object(file, most=7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    arrays = {
        "x": np.arange(12.0).reshape(3, 4).T,
        "y": np.array(3, np.int8),
        "none": np.zeros((0, 3), np.float16),
        "words": np.array(["a", "bc"]),
    }
    save(tmp_path / "a.npz", **arrays)
    for name, array in read_npz(tmp_path / "a.npz").items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)
    assert set(read_npz(tmp_path / "a.npz", lambda names: names[1:2])) == {"y"}
    np.save(tmp_path / "x.npy", arrays["x"])
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), arrays["x"], strict=True)
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (whole[:-1], whole + b"x"):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError, match="its header tells of .* 96 bytes, but 9[57] follow"):
            read_npy(tmp_path / "x.npy")


def test_readers_need_no_jax():
    code = "import sys; from jaxunlearn.core import readers; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
