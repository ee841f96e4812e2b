"""S3T on images: what slices cost, what several orders buy, how good it stays under deletions.

Paper:     S3T, arXiv 2406.16257 (ICLR 2025), which has ViT-base at 224 pixels, pretrained on
           ImageNet-21k, and all of CIFAR-10; here it is a small ViT on 6,000 images
Command:   python -m experiments.s3t.images fashion_mnist     (or cifar10)
           (TFDS_DATA_DIR names the folder of prepared data sets; it goes on after an interruption)
Hardware:  2 CPU cores, 20 to 30 minutes a data set
Data:      6,000 training images of all ten classes a seed, cut at random into 20 slices of 300; the
           first 5,000 of a fixed permutation of the test images. CIFAR-10 went through JPEG once
Network:   ViT, 8 layers, width 64, 4 heads, MLP 128, 16 patches and a class token
Base:      trained on 20,000 training images of the classes 0 to 4, none of which a seed draws
           again; 15 epochs, flips and shifts
Plan:      m = 5 shards, L = 4 slices, two layers a slice, B = 4 cyclic orders, whose first one and
           two are those of B = 1 (SISA) and B = 2. LoRA of rank 8, alpha 16, on queries and values;
           AdamW at 4e-3, linear to 0, 10 epochs a stage, batch 32; no dropout, where the paper's
           adapters have 0.1, and no augmentation. The rate is the better of 1e-3
           and 4e-3 by the accuracy of two shards in a trial on other images of Fashion-MNIST
Beside it: ordinary LoRA on all eight layers of each shard's 1,200 images, for 10 epochs (those of
           a stage) and 25 (the steps of an order); S3T from the bottom up, the first order only
Seeds:     0, 1, 2 (images, slices, adapters, batches, streams)
Requests:  uniform over slices; 200 streams of 60 for accuracies, 20,000 for lifetimes. A system
           whose shards are all dead answers at chance, 10 %; living ones are shown beside it
Arithmetic: a seed trains 20 orders x 10 epochs x (300 + 600 + 900 + 1,200) images = 600,000,
           150,000 from the bottom up and 210,000 for ordinary LoRA; at 3,000 images a second 5
           minutes. The base 300,000 images at 900 a second
To show (fixed before the run), means over seeds, in points of accuracy: all slices at least 1 above
           one slice (ensembles of all shards); at most 3 below the better ordinary LoRA; the mean
           over 60 requests larger for B = 4 than for 2 than for 1, and at 24 requests by at least 1
           from B = 1 to 4; lifetimes in the ratio 1.576 within 3 %. Top-down against bottom-up as
           it comes out

Writes DATA.json and DATA.png beside this file; lanes and outputs are kept under runs/s3t.
"""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import data
from jaxunlearn.cli import drawing
from jaxunlearn.core import checkpoint, disk, mesh, records
from jaxunlearn.core.keys import fold
from jaxunlearn.data import augment
from jaxunlearn.exact import curves, deletion, orders, prefixes, serving, sliceable
from jaxunlearn.exact import plan as plans
from jaxunlearn.exact.pretraining import Pretraining, pretrain
from jaxunlearn.nn.images import vit

HERE, RUNS = Path(__file__).parent, Path("runs/s3t")
SEEDS, BUDGETS, CHANCE = (0, 1, 2), (1, 2, 4), 0.1
SHARDS, SLICES, CAPACITY, N_TEST, N_PUBLIC = 5, 4, 300, 5000, 20_000
STREAMS, REQUESTS, LIFETIMES, COMPARED = 200, 60, 20_000, 24
RECIPE = plans.StageRecipe(
    rank=8, alpha=16.0, learning_rate=4e-3, epochs=10, batch_size=32, dropout=0.0
)
ORDERS = orders.cyclic(SLICES, max(BUDGETS))
S3T = plans.make(SHARDS, ORDERS, CAPACITY, recipe=RECIPE, layers_per_slice=2)
PLANS = {
    "s3t": S3T,
    "bottom_up": dataclasses.replace(
        S3T, orders=tuple(order[:1] for order in S3T.orders), direction="bottom_up"
    ),
    **{
        f"lora_{epochs}": plans.make(
            SHARDS,
            orders.cyclic(1, 1),
            SLICES * CAPACITY,
            recipe=dataclasses.replace(RECIPE, epochs=epochs),
            layers_per_slice=8,
        )
        for epochs in (10, 25)
    },
}


def read(name: str) -> tuple[dict[str, np.ndarray], vit.Config, np.ndarray]:
    """Images from -1 to 1, the network, and the rows that the base may learn."""
    dataset = data.load(name)
    arrays = {
        "x": dataset.x_train.astype(np.float32) / 127.5 - 1,
        "y": dataset.y_train,
        "x_test": dataset.x_val[:N_TEST].astype(np.float32) / 127.5 - 1,
        "y_test": dataset.y_val[:N_TEST],
    }
    height = arrays["x"].shape[1]
    config = vit.Config(arrays["x"].shape[1:], height // 4, 64, 8, 4, 128, dataset.n_classes)
    public = np.random.default_rng(1000).permutation(np.flatnonzero(dataset.y_train < 5))[:N_PUBLIC]
    return arrays, config, public


def base_of(name: str, arrays: dict, config: vit.Config, public: np.ndarray) -> Any:
    """The base of a data set, trained once."""
    record = RUNS / name / "base.json"
    if not record.exists():
        pixels = 4 if name == "cifar10" else 2
        change = augment.compose(augment.flip, functools.partial(augment.translate, pixels=pixels))
        base = pretrain(
            config,
            arrays["x"][public],
            arrays["y"][public],
            Pretraining(epochs=15, batch_size=100),
            jax.random.key(1000),
            augment=change,
            progress=lambda done, total: print("base", done, total, flush=True),
        )
        digest = checkpoint.store_shared(RUNS / name / "base", base)
        records.write(record, {"digest": digest})
    return checkpoint.load_shared(RUNS / name / "base", records.read(record)["digest"])


def outputs_of(
    kind: str, folder: Path, network: sliceable.Network, base: Any, arrays: dict, rows: np.ndarray
) -> np.ndarray:
    """Logits of every order at every depth on the test images, [m, B, L, n, 10]."""
    file = folder / f"{kind}.npz"
    if not file.exists():
        plan = dataclasses.replace(PLANS[kind], seed=int(folder.name))
        places = np.arange(len(rows)) // plan.capacity
        slices = prefixes.arrange(plan, {k: arrays[k][rows] for k in ("x", "y")}, places)
        start = time.monotonic()
        trained = prefixes.train(
            network,
            base,
            plan,
            slices,
            mesh=mesh.make({"models": mesh.cores()}),
            folder=folder / kind,
            progress=lambda *now: print(folder, kind, *now, flush=True),
        )
        seconds = time.monotonic() - start
        weights = serving.stacked(
            [
                [prefixes.assembled(plan, trained, a, b) for b in range(plan.budget)]
                for a in range(plan.n_shards)
            ]
        )
        logits = serving.all_outputs(network, plan, base, weights, {"x": arrays["x_test"]})
        disk.write_npz(file, {"logits": logits, "seconds": np.asarray(seconds)})
    with np.load(file) as stored:
        return stored["logits"]


def by_depth(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Accuracies after each stage: of single models (mean), and of ensembles of one per shard."""
    single = (logits.argmax(-1) == labels).mean(-1)
    ensemble = (logits.mean(0).argmax(-1) == labels).mean(-1)
    return {"single": single.mean((0, 1)).tolist(), "ensemble": ensemble.mean(0).tolist()}


def under_requests(logits: np.ndarray, labels: np.ndarray, seed: int) -> dict[int, dict]:
    """Accuracies and lifetimes under deletions, by budget."""
    key = fold(jax.random.key(seed), "requests")
    hits = deletion.requests(SHARDS, SLICES, None, (STREAMS, REQUESTS), key)
    by_budget = {}
    for budget in BUDGETS:
        table = S3T.table[:, :budget]
        curve = curves.follow(curves.accuracy, logits, labels, table, hits)
        at_chance = np.where(curve.living > 0, curve.score, CHANCE)
        lives = deletion.simulate(table, None, LIFETIMES, fold(key, "lifetimes", budget))
        by_budget[budget] = {
            "accuracy": at_chance.mean(0).tolist(),
            "accuracy_living": np.nanmean(curve.score, axis=0).tolist(),
            "alive": (curve.living > 0).mean(0).tolist(),
            "depth": curve.depth.mean((0, 2)).tolist(),
            "requests": {"mean": float(lives.mean()), "std": float(lives.std(ddof=1))},
            "expected": dataclasses.asdict(deletion.uniform(SHARDS, SLICES, budget)),
        }
    return by_budget


def run_seed(name: str, seed: int, arrays: dict, config: vit.Config, public: np.ndarray) -> dict:
    """Everything of one seed."""
    base, network = base_of(name, arrays, config, public), sliceable.of_vit(config)
    rest = np.setdiff1d(np.arange(len(arrays["y"])), public)
    rows = np.random.default_rng(seed).permutation(rest)[: SHARDS * SLICES * CAPACITY]
    folder = RUNS / name / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    logits = {kind: outputs_of(kind, folder, network, base, arrays, rows) for kind in PLANS}
    labels = arrays["y_test"]
    return {
        "seed": seed,
        "by_depth": {kind: by_depth(of_kind, labels) for kind, of_kind in logits.items()},
        "top_down_one_order": by_depth(logits["s3t"][:, :1], labels),
        "budgets": under_requests(logits["s3t"], labels, seed),
        "seconds": {kind: float(np.load(folder / f"{kind}.npz")["seconds"]) for kind in PLANS},
    }


def summary(rows: list[dict]) -> dict:
    """What the card asks for, in points of accuracy."""

    def mean(get):
        return 100 * float(np.mean([get(row) for row in rows]))

    depth = [mean(lambda r, k=k: r["by_depth"]["s3t"]["ensemble"][k]) for k in range(SLICES)]
    lora = max(mean(lambda r, k=k: r["by_depth"][k]["ensemble"][0]) for k in ("lora_10", "lora_25"))
    over = {b: mean(lambda r, b=b: np.mean(r["budgets"][b]["accuracy"][1:])) for b in BUDGETS}
    late = {b: mean(lambda r, b=b: r["budgets"][b]["accuracy"][COMPARED]) for b in BUDGETS}
    living = {b: mean(lambda r, b=b: r["budgets"][b]["accuracy_living"][COMPARED]) for b in BUDGETS}
    ratio = float(
        np.mean(
            [
                r["budgets"][4]["requests"]["mean"] / r["budgets"][1]["requests"]["mean"]
                for r in rows
            ]
        )
    )
    return {
        "accuracy_by_depth": depth,
        "ordinary_lora": lora,
        "mean_over_requests": over,
        f"after_{COMPARED}": late,
        f"after_{COMPARED}_living": living,
        "lifetime_ratio": ratio,
        "top_down": [
            mean(lambda r, k=k: r["top_down_one_order"]["ensemble"][k]) for k in range(SLICES)
        ],
        "bottom_up": [
            mean(lambda r, k=k: r["by_depth"]["bottom_up"]["ensemble"][k]) for k in range(SLICES)
        ],
        "held": {
            "slices": depth[-1] >= depth[0] + 1,
            "lora": depth[-1] >= lora - 3,
            "budgets": over[4] > over[2] > over[1],
            "late": late[4] >= late[1] + 1,
            "lifetimes": abs(ratio / 1.5757 - 1) <= 0.03,
        },
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws exact unlearning under deletions: accuracy, systems alive, accuracy by stages.

    Args:
        results: numbers by seed, and by budget in each.
        path: where the PNG goes.
    """
    with drawing.figure(path, (13, 4), dpi=100) as figure:
        quality, alive, stages = figure.subplots(1, 3)
        seeds = results["seeds"]
        for color, budget in zip(drawing.COLORS, seeds[0]["budgets"], strict=False):
            of_budget = [row["budgets"][budget] for row in seeds]
            for axes, name in ((quality, "accuracy"), (alive, "alive")):
                values = 100 * np.array([row[name] for row in of_budget])
                drawing.band(axes, np.arange(values.shape[1]), values, color, f"B = {budget}")
            alive.axvline(of_budget[0]["expected"]["mean"], color=color, linestyle=":")
        quality.set(
            ylabel="accuracy, % (all shards dead: chance)", title="accuracy under deletions"
        )
        alive.set(ylabel="systems alive, %", title="requests survived (dotted: expected)")
        for axes in (quality, alive):
            axes.set(xlabel="requests")
            axes.legend(fontsize="small")
        _by_stages(stages, seeds)


def _by_stages(axes: Any, seeds: list[dict[str, Any]]) -> None:
    courses = {
        "top-down": [row["by_depth"]["s3t"]["ensemble"] for row in seeds],
        "top-down, one order": [row["top_down_one_order"]["ensemble"] for row in seeds],
        "bottom-up, one order": [row["by_depth"]["bottom_up"]["ensemble"] for row in seeds],
    }
    for color, (name, values) in zip(drawing.COLORS, courses.items(), strict=False):
        drawing.band(axes, np.arange(1, len(values[0]) + 1), 100 * np.array(values), color, name)
    lora = [max(row["by_depth"][k]["ensemble"] for k in ("lora_10", "lora_25")) for row in seeds]
    last = len(courses["top-down"][0])
    axes.plot(
        [1, last], [100 * np.mean(lora)] * 2, color="0.4", linestyle=":", label="ordinary LoRA"
    )
    axes.set(xlabel="stages left, k", ylabel="accuracy, %", title="F(k), ensembles of all shards")
    axes.set_xticks(range(1, last + 1))
    axes.legend(fontsize="small")


def main() -> None:
    """Runs all seeds of a data set."""
    name = sys.argv[1]
    mesh.start(mesh.cores())
    arrays, config, public = read(name)
    rows = [run_seed(name, seed, arrays, config, public) for seed in SEEDS]
    results = {"data": name, "seeds": rows, "summary": summary(rows)}
    print(json.dumps(results["summary"], indent=1))
    records.write(HERE / f"{name}.json", results)
    draw(records.read(HERE / f"{name}.json"), HERE / f"{name}.png")


if __name__ == "__main__":
    main()
