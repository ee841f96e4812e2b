"""How benchmarks are measured: outputs first shown equal, compilation apart, medians, one record.

A benchmark is a function that returns `Row`s. It first calls `agree` on the outputs of both sides,
then `measure`s each side in the same process, one after the other.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds and memory of one side.

    Attributes:
        first: the first call, compilation included.
        steady: median of the calls after it.
        spread: least and largest of them.
        compile: part of the first call that compiled, as far as the side can tell (0: nothing).
        note: the configuration that was measured.
        peak_mib: peak memory of a first call in a process of its own, above what the process needed
            before it; see `with_peak`.
    """

    first: float
    steady: float
    spread: tuple[float, float]
    compile: float
    note: str = ""
    peak_mib: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: ours against one peer.

    Attributes:
        name: what is done.
        ours: our side.
        peer: the other side.
        peer_name: what it is.
        gap: largest difference of outputs that was seen before timing.
        target: ratio that is asked for, or None if the row is shown without a threshold.
        gflops: floating point operations of one call, in units of 1e9, or None.
        note: what else should stand beside the row.
    """

    name: str
    ours: Measured
    peer: Measured
    peer_name: str
    gap: float
    target: float | None = None
    gflops: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster we are, steady state against steady state."""
        return self.peer.steady / self.ours.steady

    @property
    def ratio_with_compile(self) -> float:
        """The same with our first call, compilation included."""
        return self.peer.steady / self.ours.first


def agree(what: str, ours: Any, peer: Any, tolerance: float) -> float:
    """The largest difference of two arrays; raises if it is above the tolerance."""
    gap = float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(peer, np.float64))))
    if not gap <= tolerance:
        raise AssertionError(f"{what}: outputs differ by {gap}, more than {tolerance}")
    return gap


def measure(
    call: Callable[[], Any], *, repeats: int = 5, compile_seconds=lambda: 0.0, note: str = ""
) -> Measured:
    """Times a call that blocks until its result is there.

    Args:
        call: what is timed.
        repeats: calls after the first one.
        compile_seconds: asked once after the first call.
        note: kept in the record.
    """
    first = _seconds(call)
    compiled = compile_seconds()
    times = [_seconds(call) for _ in range(repeats)]
    return Measured(first, statistics.median(times), (min(times), max(times)), compiled, note=note)


def with_peak(measured: Measured, module: str, side: str) -> Measured:
    """Adds the peak memory of one call, made in a process of its own.

    The module has `side(name) -> call`; what the process needed before the call is not counted.
    """
    code = (
        "from jaxunlearn.core import mesh; mesh.start(mesh.cores()); "
        f"import {module} as benchmark; call = benchmark.side({side!r}); "
        "from benchmarks.harness import peak_of; print(peak_of(call))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak = done.stdout.splitlines()[-1]
    return dataclasses.replace(measured, peak_mib=None if peak == "None" else float(peak))


def peak_of(call: Callable[[], Any]) -> float | None:
    """How far the process grows during a call, in MiB; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return None
    before = _peak_kib()
    call()
    return (_peak_kib() - before) / 1024


def best_of(candidates: dict[str, Callable[[], Any]], *, repeats: int = 3) -> Measured:
    """The fastest of several configurations of a peer, each measured."""
    measured = [measure(call, repeats=repeats, note=note) for note, call in candidates.items()]
    return min(measured, key=lambda m: m.steady)


def gemm_peak(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product, all cores of one device: the machine's yardstick."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):
        times.append(_seconds(lambda: product(a, a).block_until_ready()))
    return 2e-9 * size**3 / min(times)


def machine() -> dict[str, Any]:
    """Versions, cores and the card, for the record."""
    names = ("jax", "jaxlib", "numpy", "optax", "flax", "torch", "scikit-learn")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "gemm_gflops": gemm_peak(),
        "date": time.strftime("%Y-%m-%d"),
    }


def record(name: str, rows: list[Row], where: dict[str, Any]) -> dict[str, Any]:
    """Writes `benchmarks/results/NAME.json` and returns it."""
    content = {
        "benchmark": name,
        "machine": where,
        "rows": [
            dataclasses.asdict(row)
            | {
                "ratio": row.ratio,
                "ratio_with_compile": row.ratio_with_compile,
                "of_gemm_peak": None
                if row.gflops is None
                else row.gflops / row.ours.steady / where["gemm_gflops"],
            }
            for row in rows
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return content


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak_kib() -> int:
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
