"""The baselines on CIFAR-10: three forget sets, a hundred models a side, one small network.

Method papers: SCRUB (Kurmanji et al. 2023), SSD (Foster et al. 2024); metric: KLOM (Datamodel
Matching, arXiv 2410.23232).

Command:   python -m experiments.baselines.choose && python -m experiments.baselines.run
           (TFDS_DATA_DIR names the folder of prepared data sets; both go on after an interruption)
Hardware:  2 CPU cores (the record says which); about an hour in all. The record's seconds of
           scrub on "random" include other work on the machine
Data:      CIFAR-10 from a copy that went through JPEG once, so that accuracies lie slightly below
           those of the original; 2,000 training and 1,000 validation images, which is why they lie
           far below what the full set gives
Forget:    40 images, 2 %: random; random within class 5 (dogs); an outlying dog and its nearest
           neighbours among the dogs (a cluster, in pixel space)
Models:    the small CNN within 400,000 multiply-adds (332,416; 5,050 parameters), 10 epochs, batch
           50, no augmentation; 100 full models, shared by the forget sets; for each forget
           set 100 reference oracles, 100 fresh oracles and 100 models for each of six methods
Settings:  of the methods, by choose.py on seed 1, for each forget set on its own; this run is
           seed 0, which was not used before
Arithmetic: 700 trainings x 10 x 2,000 images = 14 million images, at 16,000 a second 15 minutes;
           the methods about as much again
To show (fixed before the run): on every forget set, mean forget KLOM of `none` at least 3 times
           that of `retrain`; `retrain` within 3 standard errors of the floor in every group

Writes results.json and figure.png beside this file; the lanes are kept under runs/baselines.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn import comparison
from jaxunlearn.cli import unlearn
from jaxunlearn.core import mesh
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import METHODS
from jaxunlearn.unlearn.scratch import Training

HERE = Path(__file__).parent
RUNS = Path("runs/baselines")
FORGET_SETS = ("random", "class", "cluster")


def settings(forget: str, seed: int, n_models: int) -> comparison.Settings:
    """The settings of one forget set."""
    return comparison.Settings(
        data="cifar10",
        model="small_cnn",
        multiply_adds=400_000,
        n_train=2000,
        n_val=1000,
        forget=forget,  # type: ignore[arg-type]
        forget_size=40,
        forget_class=5,
        n_models=n_models,
        lane_width=5,
        seed=seed,
        training=Training(epochs=10, batch_size=50, learning_rate=0.1),
    )


def compare(
    forget: str, seed: int, n_models: int, methods: comparison.Methods
) -> tuple[Path, dict[str, Any]]:
    """Runs, or goes on with, the comparison of one forget set; returns its folder and results."""
    out = RUNS / f"seed{seed}" / forget
    where = Where(out, resume=True, mesh=mesh.make())
    job = comparison.prepare(settings(forget, seed, n_models), where, methods)
    # The full models know nothing of the forget set: those of the first one serve all.
    lanes, first = (out.parent / name / "lanes" / "full" for name in (forget, FORGET_SETS[0]))
    if forget != FORGET_SETS[0] and not lanes.exists():
        shutil.copytree(first, lanes)

    def progress(phase: str, done: int, total: int) -> None:
        print(f"{forget}: {phase} {done}/{total}", flush=True)

    return out, comparison.execute(job, progress=progress)


def chosen(forget: str) -> dict[str, tuple[Any, Any]]:
    """The methods with the settings that choose.py found for a forget set."""
    winners = json.loads((HERE / "choose.json").read_text())["chosen"][forget]
    return {
        name: (METHODS[name][0], dataclasses.replace(METHODS[name][1], **values))
        for name, values in winners.items()
    }


def main() -> None:
    """Runs all forget sets and keeps their results."""
    mesh.start(mesh.cores())
    results = {}
    for forget in FORGET_SETS:
        _, results[forget] = compare(forget, 0, 100, chosen(forget))
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    unlearn.trade_offs(results, HERE / "figure.png")
    for forget, result in results.items():
        print(forget)
        Console(width=100).print(unlearn.table(result))
        klom = {name: row["klom"] for name, row in result["methods"].items()}
        ratio = klom["none"]["forget"]["mean"] / klom["retrain"]["forget"]["mean"]
        print(f"none / retrain on the forget set: {ratio:.1f} (at least 3 is asked)")
        for group, floor in result["floor"].items():
            gap = (klom["retrain"][group]["mean"] - floor["mean"]) / floor["stderr"]
            print(f"{group}: retrain is {gap:+.2f} standard errors from the floor")


if __name__ == "__main__":
    main()
