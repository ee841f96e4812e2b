import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxunlearn.cli import app
from jaxunlearn.core import mesh
from jaxunlearn.core.checkpoint import BlockStore

TINY = [
    "--n-train", "200", "--n-models", "4", "--lane-width", "2", "--forget-size", "8",
    "--training.epochs", "2", "--training.batch-size", "40", "--devices", "2",
    "--methods", "finetune", "scrub",
]  # fmt: skip


def start(folder, *arguments):
    # A shell's background jobs ignore Ctrl-C, and with them what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    code, out, err = run(folder, "unlearn", *TINY, "--out", "run", "--json", "out.json")
    assert code == 0, err
    return folder, out, err


def numbers(path):
    results = json.loads(path.read_text())
    for row in results["methods"].values():
        del row["seconds"], row["compile_seconds"]
    return results


def test_a_run_prints_a_table_and_writes_its_files(finished):
    folder, out, err = finished
    for word in ("none", "retrain", "finetune", "scrub", "floor", "MIA", "epsilon", "cost"):
        assert word in out
    assert "left" in err  # the progress bar
    names = {p.name for p in (folder / "run").iterdir()}
    assert {"results.json", "figure.png", "margins.npz", "settings.json", "lanes"} <= names
    assert (folder / "run" / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "out.json").read_bytes() == (folder / "run" / "results.json").read_bytes()
    command = (folder / "run" / "command.txt").read_text()
    assert command.startswith("jaxunlearn unlearn --n-train 200 ") and command.endswith(
        "out.json\n"
    )
    assert not [p for p in folder.rglob(".*") if p.is_file()]  # no temporary file is left


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("oracle", marks=pytest.mark.slow),
        "methods/scrub",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("methods/retrain", marks=pytest.mark.slow),
    ],
)
def test_killed_in_any_phase_it_resumes_to_the_same_numbers(phase, finished, tmp_path):
    process = start(tmp_path, "unlearn", *TINY, "--out", "run", "--resume")
    lanes = tmp_path / "run" / "lanes" / phase
    wait_for(lambda: lanes.exists(), process)
    time.sleep(np.random.default_rng(len(phase)).uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "results.json").exists()
    command = ["unlearn", *TINY, "--out", "run", "--resume", "--json", "out.json"]
    # As many devices as one likes: a resumed run has the bits of the interrupted one.
    code, _, err = run(tmp_path, *command, "--devices", len(phase) % 3 + 1)
    assert code == 0, err
    assert numbers(tmp_path / "out.json") == numbers(finished[0] / "out.json")


def wait_for(there, process):
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_ctrl_c_leaves_a_resumable_run_and_says_so(finished, tmp_path):
    process = start(tmp_path, "unlearn", *TINY, "--out", "my run")
    lanes = tmp_path / "my run" / "lanes"
    wait_for(lambda: list(lanes.glob("full/*.npz")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err and "--out 'my run' --resume" in err
    code, _, err = run(
        tmp_path, "unlearn", *TINY, "--out", "my run", "--resume", "--json", "out.json"
    )
    assert code == 0, err
    assert numbers(tmp_path / "out.json") == numbers(finished[0] / "out.json")


def indices(text):
    return lambda folder: (folder / "f.txt").write_text(text)


BAD = {
    "unknown verb": (["forget"], "verb is 'forget'; known verbs: unlearn"),
    "no verb": ([], "known verbs: unlearn"),
    "unknown option": (["unlearn", "--speed", "9"], "--speed"),
    "not a number": (["unlearn", "--n-models", "many"], "--n-models"),
    "unknown data": (["unlearn", "--data", "cats"], "data is 'cats'; known data sets: digits"),
    "unknown method": (["unlearn", "--methods", "hope"], "method is 'hope'; known methods: none"),
    "class too small": (
        ["unlearn", "--forget-size", "500"],
        "forget_size is 500; class 8 has 1",
    ),
    "out of range": (
        ["unlearn", "--forget", "file", "--forget-file", "f.txt"],
        "forget index 1200 is out of range; allowed are 0 to 1199",
        indices("3 1200"),
    ),
    "duplicates": (
        ["unlearn", "--forget", "file", "--forget-file", "f.txt"],
        "forget index 7 appears more than once",
        indices("7 3 7"),
    ),
    "missing file": (
        ["unlearn", "--forget", "file", "--forget-file", "none.txt"],
        "there is no such file",
    ),
    "one model": (["unlearn", "--n-models", "1"], "n_models is 1; at least 2"),
    "no devices": (["unlearn", "--devices", "0"], "devices is 0"),
    "bad setting": (["unlearn", "--scrub.epochs", "0"], "scrub.epochs is 0"),
    "json nowhere": (["unlearn", "--json", "no/such/f.json"], "json is 'no/such/f.json'"),
    "huge seed": (["unlearn", "--seed", "9" * 20], "seed is 99999999999999999999"),
    "too many devices": (["unlearn", "--devices", "100000"], "devices is 100000"),
    "settings of nothing": (
        ["unlearn", "--methods", "ssd", "--scrub.epochs", "9"],
        "settings of scrub are given, but it is not among the methods",
    ),
    "forget file of nothing": (["unlearn", "--forget-file", "f.txt"], "set forget to 'file'"),
    "coordinator alone": (["unlearn", "--coordinator", "a:1"], "are needed together"),
    "bad coordinator": (
        ["unlearn", "--coordinator", "a", "--processes", "2", "--process-id", "0"],
        "coordinator is 'a'; HOST:PORT",
    ),
    "no such process": (
        ["unlearn", "--coordinator", "a:1", "--processes", "2", "--process-id", "2"],
        "process_id is 2; 0 to 1 are allowed",
    ),
    "no processes": (
        ["unlearn", "--coordinator", "a:1", "--processes", "0", "--process-id", "0"],
        "processes is 0",
    ),
    "processes without a folder": (
        ["unlearn", "--coordinator", "a:1", "--processes", "2", "--process-id", "0"],
        "several processes need out",
    ),
    "two ways to find the others": (
        "unlearn --distributed --coordinator a:1 --processes 2 --process-id 0".split(),
        "distributed is given with a coordinator",
    ),
    "no shards": (["unlearn", "--batch-shards", "0"], "batch_shards is 0"),
    "uneven shards": (["unlearn", "--batch-shards", "7"], "batch_shards is 7"),
    "shards without devices": (
        ["unlearn", "--batch-shards", "4"],
        "must be at least 1 and divide the",
    ),
    "resume what": (["unlearn", "--resume"], "resume needs out"),
    "few members": (["attribute", "--members", "5"], "error: members is 5; at least 10"),
    "a target that is not there": (["attribute", "--targets", "3", "597"], "targets has 597"),
    "a part above 1": (["attribute", "--subset-fraction", "1.5"], "error: subset_fraction is 1.5"),
    "subsets of estimates": (
        ["unlearn", "--methods", "dmm", "--estimates.subset-fraction", "0"],
        "estimates.subset_fraction is 0",
    ),
    "much to match on": (
        ["unlearn", "--methods", "dmm", "--forget-size", "60"],
        "dmm.retain_multiplier is 20",
    ),
    "settings of a method that does not run": (
        ["unlearn", "--dmm.multiplier", "0.5"],
        "settings of dmm are given",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(case, tmp_path, monkeypatch, capfd):
    arguments, message, *prepare = BAD[case]
    for step in prepare:
        step(tmp_path)
    before = sorted(os.listdir(tmp_path))
    monkeypatch.chdir(tmp_path)
    try:
        code = app.main(arguments)
    except SystemExit as end:  # the parser's own errors
        code = end.code
    out, err = capfd.readouterr()
    assert code == 2, (code, out, err)
    assert message in out + err
    assert sorted(os.listdir(tmp_path)) == before


def test_bad_input_in_a_process_of_its_own(tmp_path):
    code, out, err = run(tmp_path, "unlearn", "--data", "cats")
    assert code == 2 and out == "" and "Traceback" not in err
    assert "data is 'cats'; known data sets: digits" in err
    assert not os.listdir(tmp_path)


SMALLER_JAX = """
import sys
from jaxunlearn import cli
from jaxunlearn.core import mesh
mesh.start(2)
import jax
assert jax.device_count() == 2
sys.exit(cli.main(sys.argv[1:]))
"""


def test_more_devices_than_there_are(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SMALLER_JAX, "unlearn", "--devices", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "devices is 4, but JAX already runs with 2" in done.stderr
    assert not os.listdir(tmp_path)


def test_on_an_accelerator_devices_cannot_be_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mesh, "start", lambda *_: None)  # as good as what it does there
    assert app.main(["unlearn", "--devices", "4"]) == 2
    assert "devices is 4, but there are 1" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


# From the second lane of oracles on no file can have more than 9000 bytes, less than a lane needs.
FULL_DISK = """
import resource, sys
from jaxunlearn import cli
from jaxunlearn.cli.console import Bar

def fill(bar, phase, done, total, update=Bar.update):
    update(bar, phase, done, total)
    if (phase, done) == ("oracle", 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))

Bar.update = fill
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_finished(finished, tmp_path):
    arguments = ["unlearn", *TINY, "--out", "run", "--devices", "1"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search("File too large: .*lanes/oracle/00001.npz", done.stderr)
    lanes = tmp_path / "run" / "lanes"
    kept = sorted(str(p.relative_to(lanes)) for p in lanes.rglob("*.*"))  # temporary files as well
    assert kept == ["full/00000.npz", "full/00001.npz", "oracle/00000.npz"]
    assert not list(tmp_path.rglob(".*"))
    for phase, number in (("full", 0), ("full", 1), ("oracle", 0)):
        BlockStore(lanes / phase).read(number)
    code, _, err = run(tmp_path, *arguments, "--resume", "--json", "out.json")
    assert code == 0, err
    assert numbers(tmp_path / "out.json") == numbers(finished[0] / "out.json")


def test_an_occupied_folder_is_refused(finished):
    folder, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    code, _, err = run(folder, "unlearn", *TINY, "--out", "run")
    assert code == 2 and "holds a run; resume it, or choose another folder" in err
    code, _, err = run(folder, "unlearn", *TINY, "--out", "run", "--resume", "--seed", "1")
    assert code == 2 and "settings.seed = 0, but now it is 1" in err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_divergence_is_named_and_finished_methods_are_kept(tmp_path):
    arguments = [*TINY[:-2], "ascent", "finetune", "--ascent.learning-rate", "1e30"]
    code, out, err = run(tmp_path, "unlearn", *arguments, "--out", "run", "--json", "out.json")
    assert code == 1
    assert "ascent: the loss of member 0 is" in err and "at step" in err
    results = json.loads((tmp_path / "out.json").read_text())
    assert list(results["methods"]) == ["none", "retrain", "finetune"]
    assert "ascent" in results["failed"] and "finetune" in out


def test_help_and_version(tmp_path):
    import jaxunlearn

    assert run(tmp_path, "--version")[1].strip() == jaxunlearn.__version__
    code, out, _ = run(tmp_path, "--help")
    assert code == 0 and "unlearn" in out
    code, out, _ = run(tmp_path, "unlearn", "--help")
    assert code == 0
    for option in ("--n-models", "--forget-size", "--scrub.temperature", "--resume", "--devices"):
        assert option in out


LIGHT = """
import sys
from jaxunlearn.cli import app
for arguments in [["--version"], ["--help"], ["forget"], ["exact", "--help"], ["exact", "forget"]]:
    app.main(arguments)
heavy = {"jax", "numpy", "tyro", "rich", "flax", "scipy"} & set(sys.modules)
assert not heavy, heavy
for verb in ("unlearn", "attribute", "paths", "exact status", "exact delete"):
    try:
        app.main([*verb.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0
heavy = {"jax", "flax", "optax", "orbax", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_and_mistakes_load_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


ATTRIBUTE = [
    "--n-train", "60", "--n-val", "40", "--members", "24", "--held-out", "8", "--checkpoints", "1",
    "--features", "32", "--targets", "0", "5", "--training.epochs", "2", "--out", "run",
    "--training.batch-size", "10", "--lane-width", "4",
]  # fmt: skip


def test_attribution_prints_scores_draws_and_resumes(tmp_path):
    code, out, err = run(tmp_path, "attribute", *ATTRIBUTE, "--json", "out.json")
    assert code == 0, err
    assert "LDS on 8 held-out subsets" in out and "datamodel" in out and "trak" in out
    assert "left" in err
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"results.json", "figure.png", "datamodel.npz", "trak.npz", "settings.json"} <= names
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "run/results.json").read_bytes()
    before = json.loads((tmp_path / "out.json").read_text())
    code, _, err = run(tmp_path, "attribute", *ATTRIBUTE)
    assert code == 2 and "holds a run; resume it" in err
    other = [*ATTRIBUTE, "--resume", "--targets", "7", "--json", "out.json"]
    code, _, err = run(tmp_path, "attribute", *other)
    assert code == 0, err
    after = json.loads((tmp_path / "out.json").read_text())
    assert after["lds"] == before["lds"] and [t["index"] for t in after["targets"]] == [7]
