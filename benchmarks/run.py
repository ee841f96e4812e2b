"""`python -m benchmarks.run [NAMES]`: runs benchmarks, prints one table, writes JSON.

Needs the `parity` and `bench` extras (a CPU build of torch==2.13.0, and dattri).
"""

import importlib
import sys

from rich.console import Console
from rich.table import Table

from benchmarks import harness
from jaxunlearn.core import mesh

NAMES = (
    "ensemble",
    "klom",
    "images",
    "dmm",
    "language",
    "paths",
    "smollm2",
    "exact",
    "compact",
    "corruptions",
    "tta",
    "tta_runs",
)


def main(names: list[str]) -> int:
    """Runs the named benchmarks, or all."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"benchmark is {unknown[0]!r}; known benchmarks: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    mesh.start(mesh.cores())
    where = harness.machine()
    title = f"{where['cpu']}, {where['cores']} cores, GEMM {where['gemm_gflops']:.0f} GFLOP/s"
    table = Table(title=title)
    for column in (
        "what",
        "ours",
        "peer",
        "ratio",
        "asked",
        "with compile",
        "peak MiB",
        "GEMM",
        "gap",
    ):
        table.add_column(column, justify="left" if column in ("what", "peer") else "right")
    for name in names or NAMES:
        rows = []
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(f"{row.name}: {row.ratio:.2f}x", file=sys.stderr)  # some take minutes
            rows.append(row)
        for row in harness.record(name, rows, where)["rows"]:
            ours, peer = row["ours"], row["peer"]
            peaks = "/".join(
                "-" if side["peak_mib"] is None else f"{side['peak_mib']:.0f}"
                for side in (ours, peer)
            )
            table.add_row(
                row["name"],
                f"{ours['steady']:.3f} s",
                f"{peer['steady']:.3f} s  {row['peer_name']} ({peer['note']})",
                f"{row['ratio']:.1f}x",
                "-" if row["target"] is None else f"{row['target']:.1f}x",
                f"{row['ratio_with_compile']:.1f}x",
                peaks,
                "-" if row["of_gemm_peak"] is None else f"{100 * row['of_gemm_peak']:.0f} %",
                f"{row['gap']:.0e}",
            )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
