import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.data import _cache

LOAD = "import sys; from jaxunlearn import data; from jaxunlearn.data import _cache, _decode\n"
END = "d = data.load(sys.argv[1]); print(int(d.x_train.sum()))"


@pytest.fixture
def decoded(monkeypatch):
    """How often something was decoded."""
    calls = []
    decode = _cache.decode
    monkeypatch.setattr(_cache, "decode", lambda e: calls.append(e.name) or decode(e))
    return calls


def child(folder, code=""):
    command = [sys.executable, "-c", LOAD + code + END, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def same(a, b):
    for name in ("x_train", "y_train", "x_val", "y_val"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_set_is_decoded_once_and_says_so(make_folder, decoded, own_cache, capsys):
    folder, _ = make_folder()
    one, two = data.load(folder), data.load(folder)
    same(one, two)
    assert decoded == ["pets"]
    assert capsys.readouterr().err.count("decoding pets: 12 images, 0.00108 MB into") == 1
    (entry,) = own_cache.glob("pets-*")
    told = json.loads((entry / "entry.json").read_text())["arrays"]["x_train"]
    assert told["shape"] == [6, 6, 5, 3] and told["bytes"] == 540 and len(told["sha256"]) == 64
    for found in (one, two):
        with pytest.raises(ValueError, match="read-only"):
            found.x_train[0] = 0


def test_a_changed_source_replaces_its_entry(make_folder, decoded, own_cache):
    folder, _ = make_folder()
    data.load(folder)
    (folder / "train/cat/000.png").write_bytes((folder / "train/cat/001.png").read_bytes())
    found = data.load(folder)
    np.testing.assert_array_equal(found.x_train[0], found.x_train[1])
    os.utime(folder / "test/dog/000.png", ns=(1, 1))
    data.load(folder)
    (folder / "train/cat/002.png").unlink()
    assert len(data.load(folder).x_train) == 5
    assert len(decoded) == 4 and len(list(own_cache.glob("pets-*"))) == 1


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "record", "no record", "foreign"])
def test_a_damaged_entry_is_named_and_made_anew(make_folder, decoded, own_cache, capsys, how):
    folder, _ = make_folder()
    whole = data.load(folder)
    (entry,) = own_cache.glob("pets-*")
    x = entry / "x_train.npy"
    content = bytearray(x.read_bytes())
    x.unlink()  # `whole` maps it
    content[-7] ^= 1
    if how != "gone":
        x.write_bytes({"cut": content[:-9], "foreign": b"hello"}.get(how, content))
    if how == "record":
        (entry / "entry.json").write_text("{")
    elif how == "no record":
        (entry / "entry.json").unlink()
    capsys.readouterr()
    same(data.load(folder), whole)
    assert f"{entry} is damaged" in capsys.readouterr().err
    same(data.load(folder), whole)
    assert len(decoded) == 2 and not capsys.readouterr().err


@pytest.mark.parametrize(
    "where",
    [
        "kill_in(_decode, '_image', 5)",  # while decoding
        "kill_in(_cache.np.lib.format, 'write_array_header_1_0', 3)",  # between two files
        "kill_in(_cache.Path, 'rename', 1)",  # just before the entry appears
    ],
)
def test_a_kill_leaves_no_half_entry(make_folder, own_cache, where):
    folder, _ = make_folder()
    killing = (
        "import os, signal\n"
        "def kill_in(owner, name, call):\n"
        "    real, calls = getattr(owner, name), []\n"
        "    def replaced(*args, **kwargs):\n"
        "        calls.append(0)\n"
        "        if len(calls) == call: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return real(*args, **kwargs)\n"
        "    setattr(owner, name, replaced)\n"
        f"{where}\n"
    )
    process = child(folder, killing)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not list(own_cache.glob("pets-*"))
    expected = data.load(folder, cache_dir=own_cache.with_name("other"))
    same(data.load(folder), expected)
    left = sorted(path.name for path in own_cache.iterdir())
    assert len(left) == 2 and left[0].endswith(".lock") and left[1].startswith("pets-")


def test_two_processes_decode_once_between_them(make_folder):
    folder, images = make_folder(n=50)
    slow = "import time; d = _cache.decode\n_cache.decode = lambda e: (time.sleep(2), d(e))[1]\n"
    processes = [child(folder, slow) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    total = sum(int(x.sum()) for (split, _), x in images.items() if split == "train")
    assert [out.strip() for out, _ in results] == [str(total)] * 2, results
    assert sum(err.count("decoding pets") for _, err in results) == 1


def test_a_full_disk_loses_no_data(make_folder, own_cache):
    folder, images = make_folder(n=50)  # 9 kB
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    process = child(folder, limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    total = sum(int(x.sum()) for (split, _), x in images.items() if split == "train")
    assert int(out) == total
    assert "could not be written ([Errno 27] File too large); decoding again next time" in err
    assert [path.name for path in own_cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_cache_that_is_no_folder(make_folder, tmp_path, capsys):
    folder, _ = make_folder()
    (tmp_path / "file").write_text("")
    found = data.load(folder, cache_dir=tmp_path / "file" / "cache")
    assert len(found.x_train) == 6
    assert "could not be written" in capsys.readouterr().err


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert _cache._default_dir() == tmp_path / "cache"
    monkeypatch.delenv("JAXUNLEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache._default_dir() == tmp_path / "jaxunlearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache._default_dir() == tmp_path / ".cache" / "jaxunlearn"


@pytest.mark.slow
def test_a_large_set_is_read_faster_than_it_is_decoded(make_folder):
    folder, _ = make_folder(n=500, shape=(32, 32, 3))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        data.load(folder)
        times.append(time.perf_counter() - start)
    assert times[1] < times[0] / 3
