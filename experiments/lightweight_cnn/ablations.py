"""What each part of the lightweight CNN's recipe is worth, on Fashion-MNIST.

Paper:     arXiv 2501.15547, which has no ablation
Command:   python -m experiments.lightweight_cnn.ablations
           (TFDS_DATA_DIR names the folder of prepared data sets; it goes on after an interruption)
Hardware:  2 CPU cores
Data:      Fashion-MNIST, 50,000 training images, 10,000 validation images, all test images
Recipe:    that of `paper.py`, but batches of 128 at the same rates, which is a fourth of the steps;
           without folds but where folds are compared
Seeds:     0, 1, 2; all variants start from the same two branches of a seed
Variants:  a branch alone (clean or augmented, 6,930 parameters), and one clean branch of 18 filters
           (15,058 parameters, about those of the fused network); heads copied (both, the first one,
           none) with the paper's schedule; both of them with the schedules official_notebook and
           last_k with 2; folds of the paper's schedule, independent and continued
Arithmetic: 3 seeds x 50,000 images x (20 epochs of both branches at 7,000 images a second on one
           core, 20 of 18 filters at 3,500; 15 epochs of unfreezing below the heads for each of
           three, 60 and 15 at most for the others; 6 x 10 of folds at most, twice, at 8,000): 110
           minutes of one core
To show (fixed before the run), means over seeds of test accuracy: the fused network of `paper` at
           least 88.5 %, and at least 0.5 points above its better branch; the augmented branch below
           the clean one; copied heads above drawn ones; continued folds' accuracy, from the second
           fold on, on those validation images that no stage before was trained on, above their
           test accuracy by at least 0.4 points, and by more than that of independent ones. The
           schedules against each other as it comes out

Writes ablations.json beside this file; every epoch is kept under runs/lightweight_cnn/ablations.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data
from jaxunlearn.compact import Recipe, fitting, measure, phases
from jaxunlearn.core import members, mesh, records
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.run_folder import RunFolder, run_record
from jaxunlearn.nn.images import dual_cnn

HERE, RUNS = Path(__file__).parent, Path("runs/lightweight_cnn/ablations")
SEEDS, SHAPE, N_VAL = (0, 1, 2), (28, 28, 1), 10_000
WIDE = 18  # filters of a branch that is to be as large as the fused network
RECIPE = Recipe(batch_size=128, fold_mode="none")
# Which heads are copied, and the schedule.
VARIANTS: list[tuple[Any, Any]] = [
    *(("both", schedule) for schedule in ("paper", "official_notebook", "last_k")),
    *((heads, "paper") for heads in ("first", "none")),
]


def main() -> None:
    """Runs all variants."""
    mesh.start(mesh.cores())
    dataset = data.load("fashion_mnist")
    record = run_record(RECIPE, data=dataset.arrays) | {"seeds": SEEDS, "wide": WIDE}
    RunFolder(RUNS, record, {}, resume=True).begin()
    images = fitting.Images(jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train), N_VAL)
    pair, wide = dual_cnn.build(SHAPE), dual_cnn.build(SHAPE, filters=WIDE)
    keys = jax.vmap(jax.random.key)(jnp.array(SEEDS))
    dual = phases.train_dual(pair, RECIPE, images, keys, place("dual"))
    large = phases.train_dual(wide, RECIPE, images, keys, place("dual-18"))
    test = dataset.x_val, dataset.y_val
    branches = phases.branch_accuracies(pair, dual.state.params, *test)
    results: dict[str, Any] = {
        "clean branch": summary(branches[:, 0]),
        "augmented branch": summary(branches[:, 1]),
        "one branch, 18 filters": summary(
            phases.branch_accuracies(wide, large.state.params, *test)[:, 0]
        ),
    }
    states = {}
    for heads, schedule in VARIANTS:
        recipe = dataclasses.replace(RECIPE, heads=heads, schedule=schedule)
        name = f"{schedule}, heads {heads}"
        fused = phases.fuse(pair, recipe, dual.state.params, keys)
        stages = phases.unfreeze(pair, recipe, fused, images, keys, place(name))
        states[name] = stages[-1].state
        results[name] = summary(measure.correct(pair.fused, states[name].params, *test).mean(1))
        print(name, results[name], flush=True)
    for mode in ("independent", "continued"):
        recipe = dataclasses.replace(RECIPE, fold_mode=mode)
        folds = phases.fine_tune(
            pair, recipe, states["paper, heads both"], images, keys, place(f"folds-{mode}")
        )
        results[f"folds, {mode}"] = of_folds(pair, folds, images, *test)
        print(mode, results[f"folds, {mode}"], flush=True)
    content = {"recipe": dataclasses.asdict(RECIPE), "seeds": SEEDS, "results": results}
    records.write(HERE / "ablations.json", content | {"shown": verdicts(results)})


def place(name: str) -> fitting.Placement:
    """All cores; what is finished is kept."""
    folder = RUNS / name.replace(", ", "-").replace(" ", "-")
    return fitting.Placement(
        mesh.make({"models": mesh.cores()}),
        lambda phase: ResumePoint(folder / phase),
        lambda *now: print(name, *now, flush=True),
    )


def of_folds(
    pair: dual_cnn.Pair,
    folds: list[members.Fitted],
    images: fitting.Images,
    x: np.ndarray,
    y: np.ndarray,
) -> dict[str, Any]:
    """Validation and test accuracy of each fold, means over seeds."""
    rows = np.arange(len(SEEDS))
    val = np.stack([fold.checks["accuracy"][rows, fold.best_checks[0]] for fold in folds])
    test = np.stack(
        [measure.correct(pair.fused, fold.state.params, x, y).mean(1) for fold in folds]
    )
    unseen = phases.unseen_accuracies(pair, folds, images)
    return {
        "val": val.mean(1).tolist(),
        "test": test.mean(1).tolist(),
        "val_above_test": float((val[1:] - test[1:]).mean()),
        "unseen_above_test": float((unseen[1:] - test[1:]).mean()),
    }


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean over seeds, and each."""
    return {"mean": float(np.mean(values)), "seeds": np.asarray(values, float).tolist()}


def verdicts(results: dict[str, Any]) -> dict[str, bool]:
    """What was asked for, and whether it came."""
    mean = {name: row["mean"] for name, row in results.items() if "mean" in row}
    paper = mean["paper, heads both"]
    gaps = [results[f"folds, {mode}"]["unseen_above_test"] for mode in ("continued", "independent")]
    return {
        "fused at least 88.5 %": paper >= 0.885,
        "0.5 points above the better branch": paper
        >= 0.005 + max(mean["clean branch"], mean["augmented branch"]),
        "augmented below clean": mean["augmented branch"] < mean["clean branch"],
        "copied above drawn heads": paper > mean["paper, heads none"],
        "leak of at least 0.4 points": gaps[0] >= 0.004 and gaps[0] > gaps[1],
    }


if __name__ == "__main__":
    main()
