"""The tables of the systems' READMEs, each from a committed record."""

import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn.cli import unlearn

ROOT = Path(__file__).parent.parent
IMAGES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def digits() -> str:
    """The default run, as the command line prints it."""
    console = Console(file=io.StringIO(), width=110)
    console.print(unlearn.table(read("experiments/digits/results.json")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "```text\n" + "\n".join(line.rstrip() for line in lines).rstrip() + "\n```"


def digits_settings() -> str:
    """The settings that were chosen for each method."""
    lines = [line("method", "score", "settings"), "|---" * 3 + "|"]
    best: dict[str, Any] = {}
    for row in read("experiments/digits/choose.json")["rows"]:
        if row["score"] < best.get(row["method"], row)["score"] or row["method"] not in best:
            best[row["method"]] = row
    for method, row in best.items():
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        lines.append(line(method, f"{row['score']:.2f}", settings))
    return "\n".join(lines)


def baselines() -> str:
    """Every method on three forget sets."""
    lines = [
        "| forget set | method | KLOM forget | retain | val | acc % forget | retain | val | cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for forget, result in read("experiments/baselines/results.json").items():
        for name, row in result["methods"].items():
            klom = [f"{row['klom'][group]['mean']:.2f}" for group in unlearn.GROUPS]
            accuracy = [f"{100 * row['accuracy'][group]:.1f}" for group in unlearn.GROUPS]
            lines.append(line(forget, name, *klom, *accuracy, f"{row['cost']:.3f}"))
        floor = [f"{result['floor'][group]['mean']:.2f}" for group in unlearn.GROUPS]
        lines.append(line(forget, "*floor*", *floor, "", "", "", ""))
    return "\n".join(lines)


def tiny() -> str:
    """Forgetting of a tiny transformer, by position and loss."""
    results = read("experiments/retrain_equivalence/tiny.json")
    positions = [f"p = {p}" for p in range(1, 5)]
    lines = [line("loss", *positions, "p = 4 slowest", "p = 1 / p = 4"), "|---" * 7 + "|"]
    for loss, recency in results["recency"].items():
        scores = [row["forget"][loss] for row in results["seeds"]]
        medians = [f"{statistics.median(of_path):.3f}" for of_path in zip(*scores, strict=True)]
        slowest = f"{recency['p4']} of {len(scores)}"
        lines.append(line(loss, *medians, slowest, f"{recency['ratio']:.1f}"))
    return "\n".join(lines)


def smollm2() -> str:
    """Every path of SmolLM2 under every loss."""
    results = read("experiments/retrain_equivalence/smollm2.json")
    kept = [name for name in results["orders"][0] if name != results["forget"]]
    headers = ["loss", "path", "phrases before", "forget score", "answers before", "their fall"]
    headers += [f"utility {n}" for n in kept]
    headers += ["Jeffreys to other paths", "distance to retrained: before", "after"]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    for loss, row in results["losses"].items():
        n_others, answers = len(results["orders"]) - 1, row["answer_logp"][results["forget"]]
        for i, order in enumerate(results["orders"]):
            retrained = [
                mean(check[seed][i] for seed in range(len(check)))
                for check in (row["distance_to_retrained"][0], row["distance_to_retrained"][-1])
            ]
            lines.append(
                line(
                    loss,
                    " > ".join(order),
                    f"{mean(seed[0] for seed in row['label_logp'][i]):.2f}",
                    f"{mean(row['forget_score'][i]):.3f}",
                    f"{mean(seed[0] for seed in answers[i]):.2f}",
                    f"{mean(seed[0] - seed[-1] for seed in answers[i]):.3f}",
                    *(f"{mean(row['utility'][name][i]):.3f}" for name in kept),
                    f"{mean(sum(seed[i]) / n_others for seed in row['jeffreys'][-1]):.3f}",
                    *(f"{value:.0f}" for value in retrained),
                )
            )
    return "\n".join(lines)


def s3t() -> str:
    """Accuracies by slices, and under requests."""
    contents = [read(f"experiments/s3t/{name}.json") for name in ("fashion_mnist", "cifar10")]
    headers = [
        "data",
        *(f"{k} slices" for k in range(1, 5)),
        "ordinary LoRA",
        "bottom-up, 4 slices",
    ]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    for content in contents:
        summary = content["summary"]
        accuracies = [*summary["accuracy_by_depth"], summary["ordinary_lora"]]
        accuracies.append(summary["bottom_up"][-1])
        lines.append(line(content["data"], *(f"{value:.1f}" for value in accuracies)))
    headers = ["data", "orders", "mean of 60 requests", "after 24", "after 24, living systems"]
    headers += ["requests survived", "expected"]
    lines += ["", line(*headers), "|---" * len(headers) + "|"]
    for content in contents:
        for budget in "124":
            seeds = [seed["budgets"][budget] for seed in content["seeds"]]
            accuracies = [
                content["summary"][name][budget]
                for name in ("mean_over_requests", "after_24", "after_24_living")
            ]
            survived = mean(row["requests"]["mean"] for row in seeds)
            values = (*accuracies, survived, seeds[0]["expected"]["mean"])
            lines.append(
                line(content["data"], f"B = {budget}", *(f"{value:.1f}" for value in values))
            )
    return "\n".join(lines)


def tofu() -> str:
    """Answers by slices, and under requests."""
    content = read("experiments/s3t/tofu.json")
    headers = ["slices", "base", *map(str, range(1, 5))]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    for name, label in (("read", "that the prefix has read"), ("not read", "all others")):
        values = [content["base"], *content["by_stages"][name]]
        lines.append(line(label, *(f"{value:.3f}" for value in values)))
    headers = ["orders", "before", "after 12 requests", "after 24", "alive after 24", "survived"]
    lines += ["", line(*headers), "|---" * len(headers) + "|"]
    for budget, row in content["budgets"].items():
        scores = [f"{row['score'][i]:.3f}" for i in (0, 12, 24)]
        alive = f"{100 * row['alive'][24]:.0f} %"
        lines.append(line(f"B = {budget}", *scores, alive, f"{row['requests']['mean']:.1f}"))
    return "\n".join(lines)


def compact() -> str:
    """The paper's recipe and its author's on every set."""
    headers = ["data", "recipe", "parameters", "branches: clean, augmented", "unfrozen"]
    headers += [
        "after folds",
        "folds, validation - test: all images, not trained on before",
        "minutes",
        "published",
    ]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    published = {"mnist": "99", "fashion_mnist": "89", "cifar10": "65"}
    for data, name in IMAGES.items():
        for recipe, row in read(f"experiments/lightweight_cnn/{data}.json")["recipes"].items():
            branches = zip(*row["dual"]["test_accuracies"], strict=True)
            lines.append(
                line(
                    name,
                    recipe,
                    f"{row['parameters']:,}",
                    ", ".join(percent(mean(values)) for values in branches),
                    percent(mean(row["unfrozen_test_accuracies"])),
                    percent(row["test_accuracy"]),
                    ", ".join(
                        f"{100 * mean(row['folds'][name]):+.2f}"
                        for name in ("val_above_test", "unseen_above_test")
                    ),
                    f"{sum(row['seconds'].values()) / 60:.0f}",
                    published[data] if recipe == "paper" else "98.98, its author's run",
                )
            )
    return "\n".join(lines)


def compact_ablations() -> str:
    """What the parts of the recipe are worth."""
    lines = [line("variant", "test accuracy", "of each seed"), "|---" * 3 + "|"]
    for name, row in read("experiments/lightweight_cnn/ablations.json")["results"].items():
        if "mean" in row:
            seeds = ", ".join(map(percent, row["seeds"]))
            lines.append(line(name, percent(row["mean"]), seeds))
        else:
            gaps = [f"{100 * row[gap]:+.2f}" for gap in ("val_above_test", "unseen_above_test")]
            said = f"validation - test: {gaps[0]}; not trained on before: {gaps[1]}"
            lines.append(line(name, percent(mean(row["test"])), said))
    return "\n".join(lines)


def compact_slim() -> str:
    """Slim and minimal networks on every set."""
    headers = ["data", "network", "parameters", "multiply-adds", "test accuracy", "of each seed"]
    headers += ["epochs", "minutes for three"]
    lines = [line(*headers), "|---" * len(headers) + "|"]
    for data, name in IMAGES.items():
        content = read(f"experiments/lightweight_cnn/slim-{data}.json")
        for network, row in content["networks"].items():
            lines.append(
                line(
                    name,
                    network,
                    f"{row['parameters']:,}",
                    f"{row['multiply_adds']:,}",
                    percent(row["test_accuracy"]),
                    ", ".join(map(percent, row["test_accuracies"])),
                    str(len(row["slim"]["loss"][0])),
                    f"{sum(row['seconds'].values()) / 60:.0f}",
                )
            )
    return "\n".join(lines)


def dmm_images() -> str:
    """Every method on every forget set, means of seeds."""
    lines = [
        "| forget set | method | KLOM forget | retain | val | acc % forget | val | cost | shared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    content = read("experiments/dmm/images.json")
    for forget, seeds in content["results"].items():
        title = forget + (f", {len(seeds)} seeds" if len(seeds) > 1 else "")
        names = list(next(iter(seeds.values()))["methods"])
        rows = {name: [result["methods"][name] for result in seeds.values()] for name in names}
        seed_0 = ", seed 0" if len(seeds) > 1 else ""
        others = content["others"].get(forget, {})
        rows |= {name + seed_0: [row] for name, row in others.items()}
        for name, of_seeds in rows.items():
            klom = [mean(r["klom"][group]["mean"] for r in of_seeds) for group in unlearn.GROUPS]
            accuracy = [mean(r["accuracy"][group] for r in of_seeds) for group in ("forget", "val")]
            lines.append(
                line(
                    title,
                    name,
                    *(f"{value:.2f}" for value in klom),
                    *(f"{100 * value:.1f}" for value in accuracy),
                    f"{mean(row['cost'] for row in of_seeds):.3f}",
                    f"{mean(row['cost_shared'] for row in of_seeds):.1f}",
                )
            )
        floors = [result["floor"] for result in seeds.values()]
        floor = [f"{mean(f[group]['mean'] for f in floors):.2f}" for group in unlearn.GROUPS]
        lines.append(line(title, "*floor*", *floor, "", "", "", ""))
    return "\n".join(lines)


def dmm_mixture() -> str:
    """Every method on a mixture of Gaussians, means of seeds."""
    seeds = read("experiments/dmm/mixture.json")["seeds"]
    lines = [
        "| method | KLOM forget | retain | val | acc % val |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]["rows"]:
        of_seeds = [seed["rows"][name] for seed in seeds]
        klom = [f"{mean(row[group] for row in of_seeds):.2f}" for group in unlearn.GROUPS]
        lines.append(line(name, *klom, f"{100 * mean(row['accuracy'] for row in of_seeds):.1f}"))
    return "\n".join(lines)


def dmm_convex() -> str:
    """Relative errors on ridge regression."""
    seeds = read("experiments/dmm/convex.json")["seeds"]
    lines = ["| method | median | largest |", "|---|---|---|"]
    for name in seeds[0]:
        errors = sorted(seed[name] for seed in seeds)
        lines.append(line(name, f"{errors[len(errors) // 2]:.2g}", f"{errors[-1]:.2g}"))
    return "\n".join(lines)


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.2f}"


def mean(values: Iterable[float]) -> float:
    """The mean of numbers."""
    return statistics.fmean(values)


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def read(path: str) -> Any:
    """A record."""
    return json.loads((ROOT / path).read_text())
