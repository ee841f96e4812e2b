"""Programs that are kept between runs of the tests save time, and are never needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxunlearn.cli import programs

TINY = (
    *("unlearn", "--n-models", "2", "--n-train", "100", "--n-val", "20", "--forget-size", "5"),
    *("--methods", "none", "--training.epochs", "1"),
)

PROGRAM = """
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(5.0)))
"""

NO_HOME = """
import pathlib
def home(): raise RuntimeError("no home")
pathlib.Path.home = home
"""


def test_a_broken_entry_costs_a_compilation_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    def run():
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = run()
    entries = [file for file in tmp_path.rglob("*-cache")]
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert run() == before


@pytest.mark.parametrize(
    "kept_by", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"], ids=["us", "the user, no home"]
)
def test_a_verb_says_nothing_of_a_broken_entry(tmp_path, kept_by):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [
        sys.executable,
        "-c",
        ("" if kept_by.startswith("XDG") else NO_HOME)
        + "from jaxunlearn.cli import programs; programs.keep()"
        + PROGRAM,
    ]

    def run():
        home = {kept_by: str(tmp_path)}
        return subprocess.run(command, env=kept | home, capture_output=True, text=True, check=True)

    before = run()
    entries = list(tmp_path.rglob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    after = run()
    assert after.stdout == before.stdout and not after.stderr


def test_library_experiments_and_benchmarks_do_not_read_it(request):
    """Verbs do; who imports the library decides alone."""
    folders = [
        request.config.rootpath / name for name in ("jaxunlearn", "benchmarks", "experiments")
    ]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        assert path.parts[-2:] == ("cli", "programs.py") or (
            "COMPILATION_CACHE" not in path.read_text()
        ), path


def test_it_is_named_by_processor_and_flags_and_needs_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = programs.folder("xla")
    assert one is not None and one.parent == tmp_path / "jaxunlearn" / "xla"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert programs.folder("xla") != one
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert programs.folder("xla") is None


def test_it_stays_below_its_limit(tmp_path, monkeypatch):
    for age in range(5):
        file = tmp_path / str(age)
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(programs, "_MOST", 250)
    programs._trim(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]


def test_a_verb_reads_it_unless_it_is_told_otherwise(tmp_path):
    def made(*more):
        command = [
            sys.executable,
            "-m",
            "jaxunlearn",
            *TINY,
            "--out",
            str(tmp_path / f"run{len(more)}"),
        ]
        home = {"XDG_CACHE_HOME": str(tmp_path)}
        keep = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | home
        subprocess.run([*command, *more], env=keep, check=True, capture_output=True)
        return list((tmp_path / "jaxunlearn").rglob("*-cache"))

    assert not made("--no-compilation-cache")
    assert made()
