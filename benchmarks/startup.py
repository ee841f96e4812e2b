"""`python -m benchmarks.startup`: CPU seconds that a command takes before it does anything heavy.

Every command runs in a process of its own, user and system time of all its threads together; the
figure is the median of several runs after one that fills the file cache. The store of `exact` has
1,000 examples in 2 shards of 2 slices, its ViT is small, and every `delete` takes another example.
Writes benchmarks/results/startup.json.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from jaxunlearn.core import mesh, records
from jaxunlearn.exact import orders, service
from jaxunlearn.exact import plan as plans
from jaxunlearn.nn.images import vit

REPEATS, EXAMPLES = 9, 1000
CONFIG = vit.Config((8, 8, 1), 4, 16, 2, 2, 32, 10)
RECIPE = plans.StageRecipe(
    rank=2, alpha=4.0, learning_rate=1e-3, epochs=1, batch_size=32, dropout=0.0
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and what is asked of it.

    Attributes:
        name: as it is typed.
        arguments: of each run.
        most: CPU seconds.
        code: the exit code.
        without_jax: whether it must not import JAX.
    """

    name: str
    arguments: Iterator[list[str]]
    most: float
    code: int = 0
    without_jax: bool = True


def store(folder: Path) -> list[str]:
    """Trains a store; returns the ids of its examples."""
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.normal(size=(EXAMPLES, *CONFIG.image)).astype(np.float32),
        "y": rng.integers(0, 10, EXAMPLES).astype(np.int32),
    }
    plan = plans.make(2, orders.cyclic(2, 2), 320, recipe=RECIPE, layers_per_slice=1)
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])
    ids = [f"image-{i}" for i in range(EXAMPLES)]
    made = service.create(folder, plan, CONFIG, base, ids, examples)
    made.train(examples, mesh=mesh.make({"models": 1}))
    return ids


def commands(folder: Path) -> list[Command]:
    """What is measured."""
    exact = ["exact", "status", str(folder)], ["exact", "delete", str(folder)]
    deletions = ([*exact[1], name] for name in store(folder))
    return [
        Command("--version", itertools.repeat(["--version"]), 0.15),
        Command("--help", itertools.repeat(["--help"]), 0.15),
        Command("forget (an unknown verb)", itertools.repeat(["forget"]), 0.15, code=2),
        Command("unlearn --help", itertools.repeat(["unlearn", "--help"]), 0.8),
        Command("exact status STORE", itertools.repeat(exact[0]), 0.5),
        Command("exact delete STORE ID", deletions, 0.5),
    ]


def measured(command: Command) -> dict[str, Any]:
    """One row."""
    times = [_cpu_seconds(command) for _ in range(REPEATS + 1)][1:]
    asked = [sys.executable, "-X", "importtime", "-m", "jaxunlearn", *next(command.arguments)]
    done = subprocess.run(asked, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in lines}
    if command.without_jax and "jax" in modules:
        raise AssertionError(f"{command.name} imports JAX")
    return {
        "name": command.name,
        "cpu_seconds": statistics.median(times),
        "spread": [min(times), max(times)],
        "asked": command.most,
        "imports_jax": "jax" in modules,
    }


def _cpu_seconds(command: Command) -> float:
    """User and system time of one run."""
    asked = [sys.executable, "-m", "jaxunlearn", *next(command.arguments)]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != command.code:
        raise AssertionError(f"{command.name} ended with {process.returncode}: {said.decode()}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures all commands."""
    mesh.start(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(command) for command in commands(Path(folder) / "store")]
    where = harness.machine()
    results = Path(__file__).parent / "results" / "startup.json"
    records.write(results, {"machine": where, "repeats": REPEATS, "rows": rows})
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
