"""Several processes on one machine that do one run together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

TINY = [
    "unlearn", "--n-train", "200", "--n-models", "4", "--lane-width", "1", "--forget-size", "8",
    "--training.epochs", "1", "--training.batch-size", "40", "--methods", "ssd", "--out", "run",
]  # fmt: skip


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn", *TINY, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder, *arguments, second=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = (*arguments, "--devices", 1, "--coordinator", address, "--processes", 2)
    return [
        start(folder, *shared, "--process-id", number, *own)
        for number, own in ((0, ()), (1, second))
    ]


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    own = [line for line in out.splitlines() if not line.startswith("[Gloo]")]  # JAX's own words
    return process.returncode, "\n".join(own), err


def bits(folder):
    results = json.loads((folder / "run" / "results.json").read_text())
    for row in results["methods"].values():
        del row["seconds"], row["compile_seconds"]
    arrays = {}
    for file in sorted((folder / "run").rglob("*.npz")):
        with np.load(file) as content:
            arrays[str(file.relative_to(folder))] = {k: v.tobytes() for k, v in content.items()}
    return results, arrays


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = finish(start(folder, "--devices", 8))
    assert code == 0, err
    return bits(folder)


@pytest.mark.slow
def test_two_processes_write_the_same_bits(alone, tmp_path):
    (code, out, err), second = map(finish, start_two(tmp_path))
    assert code == 0, err
    assert "floor" in out and "left" in err  # the table, the bar
    assert second == (0, "", "")
    assert bits(tmp_path) == alone
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_what_one_process_refuses_ends_both(tmp_path):
    bad = ("--forget", "file", "--forget-file", "none.txt")
    first, second = map(finish, start_two(tmp_path, second=bad))
    assert first[0] == second[0] == 2
    assert "process 1 of the run failed" in first[2] and "there is no such file" in second[2]
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_folder_that_does_not_fit_ends_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for code, out, err in map(finish, start_two(tmp_path)):
        assert (code, out) == (2, "") and "not empty and holds no run" in err
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


# The first process also coordinates: without it JAX may abort the other one before it can speak.
@pytest.mark.slow
@pytest.mark.parametrize(("victim", "processes"), [(1, 2), (0, 1)])
def test_a_dead_process_ends_the_run_and_it_resumes(victim, processes, alone, tmp_path):
    both = start_two(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/lanes/full/*.npz")):
        assert time.monotonic() < deadline and both[1 - victim].poll() is None
        time.sleep(0.02)
    both[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finish(both[1 - victim], timeout=60)
    print(f"ended {time.monotonic() - killed:.1f} s later with {code}\n{err[:600]}")
    assert code == 1 if victim == 1 else code != 0, err
    if victim == 1:
        assert "a process of the run died" in err and "Go on with --resume" in err
    finish(both[victim])
    assert not (tmp_path / "run" / "results.json").exists()
    again = start_two(tmp_path, "--resume") if processes == 2 else [start(tmp_path, "--resume")]
    (code, out, err), *others = map(finish, again)
    assert code == 0 and "floor" in out, err
    assert others == [(0, "", "")] * (processes - 1)  # only the first one speaks
    assert bits(tmp_path) == alone
