"""`python -m experiments.fill_readme`: writes the README's tables from the committed records."""

import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn.cli import unlearn

ROOT = Path(__file__).parent.parent
BENCHMARKS = (
    "ensemble",
    "klom",
    "images",
    "dmm",
    "language",
    "paths",
    "smollm2",
    "exact",
    "compact",
)
IMAGES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def filled(text: str) -> str:
    """The README's text with all its tables made anew."""
    for mark, table in (
        ("experiments/digits/results.json", _digits()),
        ("experiments/baselines/results.json", _baselines()),
        ("experiments/dmm/images.json", _dmm_images()),
        ("experiments/dmm/mixture.json", _dmm_mixture()),
        ("experiments/dmm/convex.json", _dmm_convex()),
        ("experiments/retrain_equivalence/tiny.json", _tiny()),
        ("experiments/retrain_equivalence/smollm2.json", _smollm2()),
        ("experiments/s3t/fashion_mnist.json", _s3t()),
        ("experiments/s3t/tofu.json", _tofu()),
        ("experiments/lightweight_cnn/paper.py", _compact()),
        ("experiments/lightweight_cnn/ablations.json", _compact_ablations()),
        ("experiments/lightweight_cnn/slim.py", _compact_slim()),
        ("benchmarks/results/exact_sizes.json", _exact_sizes()),
        ("benchmarks/results", _benchmarks()),
    ):
        begin, end = f"<!-- table: {mark} -->\n", "\n<!-- end of table -->"
        before, after = text.split(begin)
        text = before + begin + table + after[after.index(end) :]
    return text


def _digits() -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(unlearn.table(_read("experiments/digits/results.json")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "```text\n" + "\n".join(line.rstrip() for line in lines).rstrip() + "\n```"


def _baselines() -> str:
    lines = [
        "| forget set | method | KLOM forget | retain | val | acc % forget | retain | val | cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for forget, result in _read("experiments/baselines/results.json").items():
        for name, row in result["methods"].items():
            klom = [f"{row['klom'][group]['mean']:.2f}" for group in unlearn.GROUPS]
            accuracy = [f"{100 * row['accuracy'][group]:.1f}" for group in unlearn.GROUPS]
            lines.append(_line(forget, name, *klom, *accuracy, f"{row['cost']:.3f}"))
        floor = [f"{result['floor'][group]['mean']:.2f}" for group in unlearn.GROUPS]
        lines.append(_line(forget, "*floor*", *floor, "", "", "", ""))
    return "\n".join(lines)


def _tiny() -> str:
    results = _read("experiments/retrain_equivalence/tiny.json")
    positions = [f"p = {p}" for p in range(1, 5)]
    lines = [_line("loss", *positions, "p = 4 slowest", "p = 1 / p = 4"), "|---" * 7 + "|"]
    for loss, found in results["recency"].items():
        scores = [row["forget"][loss] for row in results["seeds"]]
        medians = [f"{statistics.median(of_path):.3f}" for of_path in zip(*scores, strict=True)]
        slowest = f"{found['p4']} of {len(scores)}"
        lines.append(_line(loss, *medians, slowest, f"{found['ratio']:.1f}"))
    return "\n".join(lines)


def _smollm2() -> str:
    results = _read("experiments/retrain_equivalence/smollm2.json")
    kept = [name for name in results["orders"][0] if name != results["forget"]]
    headers = ["loss", "path", "phrases before", "forget score", "answers before", "their fall"]
    headers += [f"utility {n}" for n in kept]
    headers += ["Jeffreys to other paths", "distance to retrained: before", "after"]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    for loss, row in results["losses"].items():
        n_others, answers = len(results["orders"]) - 1, row["answer_logp"][results["forget"]]
        for i, order in enumerate(results["orders"]):
            retrained = [
                _mean(check[seed][i] for seed in range(len(check)))
                for check in (row["distance_to_retrained"][0], row["distance_to_retrained"][-1])
            ]
            lines.append(
                _line(
                    loss,
                    " > ".join(order),
                    f"{_mean(seed[0] for seed in row['label_logp'][i]):.2f}",
                    f"{_mean(row['forget_score'][i]):.3f}",
                    f"{_mean(seed[0] for seed in answers[i]):.2f}",
                    f"{_mean(seed[0] - seed[-1] for seed in answers[i]):.3f}",
                    *(f"{_mean(row['utility'][name][i]):.3f}" for name in kept),
                    f"{_mean(sum(seed[i]) / n_others for seed in row['jeffreys'][-1]):.3f}",
                    *(f"{value:.0f}" for value in retrained),
                )
            )
    return "\n".join(lines)


def _s3t() -> str:
    contents = [_read(f"experiments/s3t/{name}.json") for name in ("fashion_mnist", "cifar10")]
    headers = [
        "data",
        *(f"{k} slices" for k in range(1, 5)),
        "ordinary LoRA",
        "bottom-up, 4 slices",
    ]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    for content in contents:
        own = content["summary"]
        accuracies = [*own["accuracy_by_depth"], own["ordinary_lora"], own["bottom_up"][-1]]
        lines.append(_line(content["data"], *(f"{value:.1f}" for value in accuracies)))
    headers = ["data", "orders", "mean of 60 requests", "after 24", "after 24, living systems"]
    headers += ["requests survived", "expected"]
    lines += ["", _line(*headers), "|---" * len(headers) + "|"]
    for content in contents:
        for budget in "124":
            own = [seed["budgets"][budget] for seed in content["seeds"]]
            accuracies = [
                content["summary"][name][budget]
                for name in ("mean_over_requests", "after_24", "after_24_living")
            ]
            survived = _mean(row["requests"]["mean"] for row in own)
            values = (*accuracies, survived, own[0]["expected"]["mean"])
            lines.append(
                _line(content["data"], f"B = {budget}", *(f"{value:.1f}" for value in values))
            )
    return "\n".join(lines)


def _tofu() -> str:
    content = _read("experiments/s3t/tofu.json")
    headers = ["slices", "base", *map(str, range(1, 5))]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    for name, label in (("read", "that the prefix has read"), ("not read", "all others")):
        values = [content["base"], *content["by_stages"][name]]
        lines.append(_line(label, *(f"{value:.3f}" for value in values)))
    headers = ["orders", "before", "after 12 requests", "after 24", "alive after 24", "survived"]
    lines += ["", _line(*headers), "|---" * len(headers) + "|"]
    for budget, own in content["budgets"].items():
        scores = [f"{own['score'][i]:.3f}" for i in (0, 12, 24)]
        alive = f"{100 * own['alive'][24]:.0f} %"
        lines.append(_line(f"B = {budget}", *scores, alive, f"{own['requests']['mean']:.1f}"))
    return "\n".join(lines)


def _compact() -> str:
    headers = ["data", "recipe", "parameters", "branches: clean, augmented", "unfrozen"]
    headers += [
        "after folds",
        "folds, validation - test: all images, not trained on before",
        "minutes",
        "published",
    ]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    published = {"mnist": "99", "fashion_mnist": "89", "cifar10": "65"}
    for data, name in IMAGES.items():
        for recipe, own in _read(f"experiments/lightweight_cnn/{data}.json")["recipes"].items():
            branches = zip(*own["dual"]["test_accuracies"], strict=True)
            lines.append(
                _line(
                    name,
                    recipe,
                    f"{own['parameters']:,}",
                    ", ".join(_percent(_mean(values)) for values in branches),
                    _percent(_mean(own["unfrozen_test_accuracies"])),
                    _percent(own["test_accuracy"]),
                    ", ".join(
                        f"{100 * _mean(own['folds'][name]):+.2f}"
                        for name in ("val_above_test", "unseen_above_test")
                    ),
                    f"{sum(own['seconds'].values()) / 60:.0f}",
                    published[data] if recipe == "paper" else "98.98, its author's run",
                )
            )
    return "\n".join(lines)


def _compact_ablations() -> str:
    lines = [_line("variant", "test accuracy", "of each seed"), "|---" * 3 + "|"]
    for name, own in _read("experiments/lightweight_cnn/ablations.json")["results"].items():
        if "mean" in own:
            seeds = ", ".join(map(_percent, own["seeds"]))
            lines.append(_line(name, _percent(own["mean"]), seeds))
        else:
            gaps = [f"{100 * own[gap]:+.2f}" for gap in ("val_above_test", "unseen_above_test")]
            said = f"validation - test: {gaps[0]}; not trained on before: {gaps[1]}"
            lines.append(_line(name, _percent(_mean(own["test"])), said))
    return "\n".join(lines)


def _compact_slim() -> str:
    headers = ["data", "network", "parameters", "multiply-adds", "test accuracy", "of each seed"]
    headers += ["epochs", "minutes for three"]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    for data, name in IMAGES.items():
        content = _read(f"experiments/lightweight_cnn/slim-{data}.json")
        for network, own in content["networks"].items():
            lines.append(
                _line(
                    name,
                    network,
                    f"{own['parameters']:,}",
                    f"{own['multiply_adds']:,}",
                    _percent(own["test_accuracy"]),
                    ", ".join(map(_percent, own["test_accuracies"])),
                    str(len(own["slim"]["loss"][0])),
                    f"{sum(own['seconds'].values()) / 60:.0f}",
                )
            )
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _exact_sizes() -> str:
    headers = ["m", "L", "B", "requests", "stages", "orders, MB", "base, MB"]
    headers += ["memory to train, MiB", "memory to serve, MiB"]
    lines = [_line(*headers), "|---" * len(headers) + "|"]
    for row in _read("benchmarks/results/exact_sizes.json")["rows"]:
        sizes = [str(row[name]) for name in ("shards", "slices", "budget")]
        disk = [f"{row[name] / 1e6:.2f}" for name in ("order_bytes", "base_bytes")]
        peaks = [f"{row[name]:.0f}" for name in ("train_peak_mib", "serve_peak_mib")]
        lines.append(_line(*sizes, f"{row['requests']:.1f}", str(row["stages"]), *disk, *peaks))
    return "\n".join(lines)


def _dmm_images() -> str:
    lines = [
        "| forget set | method | KLOM forget | retain | val | acc % forget | val | cost | shared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    content = _read("experiments/dmm/images.json")
    for forget, seeds in content["results"].items():
        title = forget + (f", {len(seeds)} seeds" if len(seeds) > 1 else "")
        names = list(next(iter(seeds.values()))["methods"])
        rows = {name: [result["methods"][name] for result in seeds.values()] for name in names}
        seed_0 = ", seed 0" if len(seeds) > 1 else ""
        others = content["others"].get(forget, {})
        rows |= {name + seed_0: [row] for name, row in others.items()}
        for name, own in rows.items():
            klom = [_mean(row["klom"][group]["mean"] for row in own) for group in unlearn.GROUPS]
            accuracy = [_mean(row["accuracy"][group] for row in own) for group in ("forget", "val")]
            lines.append(
                _line(
                    title,
                    name,
                    *(f"{value:.2f}" for value in klom),
                    *(f"{100 * value:.1f}" for value in accuracy),
                    f"{_mean(row['cost'] for row in own):.3f}",
                    f"{_mean(row['cost_shared'] for row in own):.1f}",
                )
            )
        floors = [result["floor"] for result in seeds.values()]
        floor = [f"{_mean(f[group]['mean'] for f in floors):.2f}" for group in unlearn.GROUPS]
        lines.append(_line(title, "*floor*", *floor, "", "", "", ""))
    return "\n".join(lines)


def _dmm_mixture() -> str:
    seeds = _read("experiments/dmm/mixture.json")["seeds"]
    lines = [
        "| method | KLOM forget | retain | val | acc % val |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]["rows"]:
        own = [seed["rows"][name] for seed in seeds]
        klom = [f"{_mean(row[group] for row in own):.2f}" for group in unlearn.GROUPS]
        lines.append(_line(name, *klom, f"{100 * _mean(row['accuracy'] for row in own):.1f}"))
    return "\n".join(lines)


def _dmm_convex() -> str:
    seeds = _read("experiments/dmm/convex.json")["seeds"]
    lines = ["| method | median | largest |", "|---|---|---|"]
    for name in seeds[0]:
        errors = sorted(seed[name] for seed in seeds)
        lines.append(_line(name, f"{errors[len(errors) // 2]:.2g}", f"{errors[-1]:.2g}"))
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _benchmarks() -> str:
    lines = [
        "| what | ours | peer | ratio | asked | with compile | memory, MiB | GEMM | gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in BENCHMARKS:
        for row in _read(f"benchmarks/results/{name}.json")["rows"]:
            ours, peer = row["ours"], row["peer"]
            peaks = [side["peak_mib"] for side in (ours, peer)]
            split = "x 2 data" in ours["note"]  # each batch
            is_scaling = row["peer_name"].startswith(("1 device", "before doubling"))
            target, of_peak = row["target"], row["of_gemm_peak"]
            lines.append(
                _line(
                    row["name"],
                    _time(ours["steady"]) + (", over 2 devices" if split else ""),
                    f"{_time(peer['steady'])}, {row['peer_name']} ({peer['note']})",
                    f"{row['ratio']:,.{2 if row['ratio'] < 1000 else 0}f}x",
                    "shown only" if target is None else f"at least {target:g}x",
                    f"{row['ratio_with_compile']:,.2f}x",
                    "-" if None in peaks else "{:.0f} against {:.0f}".format(*peaks),
                    "-" if of_peak is None else f"{100 * of_peak:.0f} %",
                    "-" if is_scaling else f"{row['gap']:.0e}",
                )
            )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
