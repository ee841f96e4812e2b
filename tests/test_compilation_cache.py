"""Programs that are kept between runs of the tests save time, and are never needed."""

import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(5.0)))
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


def test_experiments_and_benchmarks_do_not_read_it(request):
    folders = [
        request.config.rootpath / name for name in ("jaxunlearn", "benchmarks", "experiments")
    ]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        assert "COMPILATION_CACHE" not in path.read_text(), path
