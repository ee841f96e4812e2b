"""`python -m benchmarks.first_run`: wall time of `jaxunlearn unlearn` with its defaults.

Each run is a process of its own with a folder of its own: from an empty cache of compiled programs,
then from the one that the run before has left. The figures are medians; nothing else should run.
Writes benchmarks/results/first_run.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness
from jaxunlearn.core import mesh, records

REPEATS = 3
ASKED = {"from an empty cache": 35.0, "again": 15.0}  # seconds on 2 cores


def seconds(folder: Path, number: int) -> float:
    """Wall time of one run; compiled programs are kept in the folder."""
    command = [sys.executable, "-m", "jaxunlearn", "unlearn", "--out", str(folder / str(number))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    begin = time.perf_counter()
    subprocess.run(
        command, env=kept | {"XDG_CACHE_HOME": str(folder)}, check=True, capture_output=True
    )
    return time.perf_counter() - begin


def main() -> None:
    """Measures both starts."""
    times: dict[str, list[float]] = {name: [] for name in ASKED}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            for number, name in enumerate(ASKED):
                times[name].append(seconds(Path(folder), number))
    rows = [
        {"name": name, "wall_seconds": statistics.median(of), "spread": [min(of), max(of)]}
        | {"asked": ASKED[name]}
        for name, of in times.items()
    ]
    mesh.start(1)
    results = Path(__file__).parent / "results" / "first_run.json"
    records.write(results, {"machine": harness.machine(), "repeats": REPEATS, "rows": rows})
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
