"""`python -m experiments.fill_readme`: the tables of all READMEs, from the committed records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.run import NAMES
from experiments import result_tables
from experiments.result_tables import line, mean, percent, read

ROOT = Path(__file__).parent.parent
# The rows of the front page: file, what was timed, against which peer. One of them is lost.
FRONT_ROWS = (
    ("ensemble", "train 100 MLPs", "PyTorch loop"),
    ("klom", "KLOM of 60,000 points x 100 models, closed", "loop as released code"),
    ("language", "16 steps of NPO", "PyTorch, transformers"),
    ("exact", "S3T, 80 stages of a ViT", "PyTorch, one order after the other"),
    ("compact", "stage A, 6400 images, batch 32", "PyTorch"),
    ("images", "an epoch of 10,240 images, augmented", "PyTorch, augmented by batch"),
)


def filled(readme: str, text: str) -> str:
    """The text of a README with all its tables made anew.

    Args:
        readme: the file's path in the repository, a key of `TABLES`.
        text: what it holds.
    """
    for mark, table in TABLES[readme].items():
        begin, end = f"<!-- table: {mark} -->\n", "\n<!-- end of table -->"
        before, after = text.split(begin)
        text = before + begin + table() + after[after.index(end) :]
    return text


def _headlines() -> str:
    """One number of each system that is there."""
    digits, images = (read(f"experiments/{name}.json") for name in ("digits/results", "dmm/images"))
    klom = {name: row["klom"]["forget"]["mean"] for name, row in digits["methods"].items()}
    scratch = ("none", "retrain")
    best = min((name for name in klom if name not in scratch), key=klom.__getitem__)
    seeds = images["results"]["random 8"].values()
    direct = mean(r["methods"]["dm_direct"]["klom"]["forget"]["mean"] for r in seeds)
    floor = mean(r["floor"]["forget"]["mean"] for r in seeds)
    tiny = read("experiments/retrain_equivalence/tiny.json")
    slow = tiny["recency"]["ga"]
    one, four = (
        mean(s["budgets"][budget]["requests"]["mean"] for s in content["seeds"])
        for content in [read("experiments/s3t/cifar10.json")]
        for budget in "14"
    )
    mnist = read("experiments/lightweight_cnn/mnist.json")["recipes"]["paper"]
    rows = [
        (
            *_system("Baselines", "unlearn", "comparison", "baselines"),
            "SCRUB, SSD, KLOM, NeurIPS 2023 epsilon",
            f"digits: the best of {len(klom) - 2} baselines has a forget KLOM of {klom[best]:.2f} "
            f"({best}); doing nothing {klom['none']:.2f}, "
            f"floor {digits['floor']['forget']['mean']:.2f}",
        ),
        (
            *_system("Datamodel Matching", "unlearn --methods dmm", "comparison", "dmm"),
            "[Attribute-to-Delete](https://arxiv.org/abs/2410.23232), ICLR 2025",
            f"CIFAR-10, 8 images: a forget KLOM of {direct:.2f} (`dm_direct`), floor {floor:.2f}",
        ),
        (
            *_system("Orders of stages", "paths", "paths", "retrain_equivalence"),
            "[On the Impossibility of Retrain Equivalence](https://arxiv.org/abs/2510.16629)",
            f"a tiny transformer forgets a stage it saw first {slow['ratio']:.1f} times as far "
            f"as one it saw last, the slowest in {slow['p4']} of {len(tiny['seeds'])} seeds",
        ),
        (
            *_system("S3T", "exact", "exact", "s3t"),
            "[Sequence-aware Sharded Sliced Training](https://arxiv.org/abs/2406.16257), ICLR 2025",
            f"{four:.1f} deletions before a new training with 4 orders of each of 5 shards, "
            f"{one:.1f} with one",
        ),
        (
            *_system("Lightweight CNN", "compact", "compact", "lightweight_cnn"),
            "[Building Efficient Lightweight CNN Models](https://arxiv.org/abs/2501.15547)",
            f"MNIST: {percent(mnist['test_accuracy'])} % with {mnist['parameters']:,} parameters",
        ),
        (
            *_system("Test-time adaptation", "adapt", "tta", "tta"),
            "[Robust Mean Teacher](https://arxiv.org/abs/2211.13081), CVPR 2023, and 17 others",
            "the experiments have not been run yet",
        ),
    ]
    lines = [line("system", "command", "paper", "measured"), "|---" * 4 + "|"]
    return "\n".join([*lines, *(line(*row) for row in rows)])


def _system(title: str, verb: str, package: str, experiment: str) -> tuple[str, str]:
    manual, tables = f"jaxunlearn/{package}/README.md", f"experiments/{experiment}/README.md"
    return f"{title}: [manual]({manual}), [tables]({tables})", f"`jaxunlearn {verb}`"


def _exact_sizes() -> str:
    headers = ["m", "L", "B", "requests", "stages", "orders, MB", "base, MB"]
    headers += ["memory to train, MiB", "memory to serve, MiB"]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    record = read("benchmarks/results/exact_sizes.json")
    for row in record["rows"]:
        sizes = [str(row[name]) for name in ("shards", "slices", "budget")]
        disk = [f"{row[name] / 1e6:.2f}" for name in ("order_bytes", "base_bytes")]
        peaks = [f"{row[name]:.0f}" for name in ("train_peak_mib", "serve_peak_mib")]
        lines.append(line(*sizes, f"{row['requests']:.1f}", str(row["stages"]), *disk, *peaks))
    return "\n".join([*lines, "", _measured(record["machine"])])


def _startup() -> str:
    record = read("benchmarks/results/startup.json")
    lines = [line("command", "CPU", "asked", "imports JAX"), "|---" * 4 + "|"]
    for row in record["rows"]:
        cpu, asked = (f"{row[name]:.2f} s" for name in ("cpu_seconds", "asked"))
        lines.append(
            line(f"`{row['name']}`", cpu, f"below {asked}", "yes" if row["imports_jax"] else "no")
        )
    return "\n".join([*lines, "", _measured(record["machine"])])


def _first_run() -> str:
    record = read("benchmarks/results/first_run.json")
    lines = [line("`jaxunlearn unlearn`", "wall", "asked"), "|---" * 3 + "|"]
    for row in record["rows"]:
        wall, asked = (f"{row[name]:.1f} s" for name in ("wall_seconds", "asked"))
        lines.append(line(row["name"], wall, f"at most {asked}"))
    return "\n".join([*lines, "", _measured(record["machine"])])


def _benchmarks(name: str) -> str:
    lines = [
        "| what | ours | peer | ratio | asked | with compile | memory, MiB | GEMM | gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    record = read(f"benchmarks/results/{name}.json")
    for row in record["rows"]:
        peaks = [row[side]["peak_mib"] for side in ("ours", "peer")]
        is_scaling = row["peer_name"].startswith(("1 device", "before doubling"))
        target, of_peak = row["target"], row["of_gemm_peak"]
        lines.append(
            line(
                *_times(row),
                "shown only" if target is None else f"at least {target:g}x",
                f"{row['ratio_with_compile']:,.2f}x",
                "-" if None in peaks else "{:.0f} against {:.0f}".format(*peaks),
                "-" if of_peak is None else f"{100 * of_peak:.0f} %",
                "-" if is_scaling else f"{row['gap']:.0e}",
            )
        )
    return "\n".join([*lines, "", _measured(record["machine"])])


def _measured(machine: dict[str, Any]) -> str:
    versions = machine["versions"]
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['gemm_gflops']:.0f} GFLOP/s in a matrix product, jax {versions['jax']}, "
        f"torch {versions['torch']}."
    )


def _front_rows() -> str:
    lines = ["| what | ours | peer | ratio | with compile |", "|---|---|---|---|---|"]
    for name, what, peer in FRONT_ROWS:
        rows = read(f"benchmarks/results/{name}.json")["rows"]
        row = next(r for r in rows if r["name"].startswith(what) and r["peer_name"] == peer)
        lines.append(line(*_times(row), f"{row['ratio_with_compile']:,.2f}x"))
    return "\n".join(lines)


def _times(row: dict[str, Any]) -> list[str]:
    """What was timed, both times, and their ratio."""
    ours, peer = row["ours"], row["peer"]
    split = "x 2 data" in ours["note"]  # each batch
    note = f" ({peer['note']})" if peer["note"] else ""
    return [
        row["name"],
        _time(ours["steady"]) + (", over 2 devices" if split else ""),
        f"{_time(peer['steady'])}, {row['peer_name']}{note}",
        f"{row['ratio']:,.{2 if row['ratio'] < 1000 else 0}f}x",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"


def _rows_of(name: str) -> Callable[[], str]:
    return lambda: _benchmarks(name)


# The tables of every README, each with the record that it shows.
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "experiments/digits/results.json": result_tables.digits,
        "experiments": _headlines,
        "benchmarks/results": _front_rows,
    },
    "experiments/digits/README.md": {
        "experiments/digits/choose.json": result_tables.digits_settings
    },
    "experiments/baselines/README.md": {
        "experiments/baselines/results.json": result_tables.baselines
    },
    "experiments/dmm/README.md": {
        "experiments/dmm/images.json": result_tables.dmm_images,
        "experiments/dmm/mixture.json": result_tables.dmm_mixture,
        "experiments/dmm/convex.json": result_tables.dmm_convex,
    },
    "experiments/retrain_equivalence/README.md": {
        "experiments/retrain_equivalence/tiny.json": result_tables.tiny,
        "experiments/retrain_equivalence/smollm2.json": result_tables.smollm2,
    },
    "experiments/s3t/README.md": {
        "experiments/s3t/fashion_mnist.json": result_tables.s3t,
        "experiments/s3t/tofu.json": result_tables.tofu,
    },
    "experiments/lightweight_cnn/README.md": {
        "experiments/lightweight_cnn/paper.py": result_tables.compact,
        "experiments/lightweight_cnn/ablations.json": result_tables.compact_ablations,
        "experiments/lightweight_cnn/slim.py": result_tables.compact_slim,
    },
    "benchmarks/README.md": {
        **{f"benchmarks/results/{name}.json": _rows_of(name) for name in NAMES},
        "benchmarks/results/exact_sizes.json": _exact_sizes,
        "benchmarks/results/startup.json": _startup,
        "benchmarks/results/first_run.json": _first_run,
    },
}

if __name__ == "__main__":
    for readme in TABLES:
        path = ROOT / readme
        path.write_text(filled(readme, path.read_text()))
