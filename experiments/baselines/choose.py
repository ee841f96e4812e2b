"""Chooses each method's settings for each forget set: four of them, on another seed than is shown.

Command:   python -m experiments.baselines.choose
Hardware:  2 CPU cores; about 10 minutes
Protocol:  the comparison of run.py with seed 1 and 10 models a side. Every method gets the same
           budget of four settings on each forget set. KLOM is too noisy with 10 models, so that the
           score is the gap between the mean margins of the unlearned models and of the oracles, in
           standard deviations of the oracles' margin, absolute, the mean over a group's points and
           then over the three groups; the least wins. Oracles are used to choose.
Writes choose.json beside this file: every setting, its scores, and the winners.
"""

import json

from experiments.baselines.run import FORGET_SETS, HERE, compare
from experiments.grid import candidates, margin_gaps
from jaxunlearn.core import mesh

GRIDS = {
    "finetune": {"learning_rate": (0.05, 0.1), "epochs": (2, 5)},
    "ascent": {"learning_rate": (0.001, 0.003), "epochs": (3, 10)},
    "ascent_descent": {"learning_rate": (0.01, 0.03), "forget_weight": (0.02, 0.1)},
    "random_labels": {"learning_rate": (0.01, 0.03), "epochs": (1, 3)},
    "scrub": {"learning_rate": (0.01, 0.05), "ascent_epochs": (1, 3)},
    "ssd": {"alpha": (10.0, 30.0), "lam": (0.5, 1.0)},
}


def main() -> None:
    """Runs all settings on all forget sets and writes their scores."""
    mesh.start(mesh.cores())
    variants = candidates(GRIDS)
    methods = {label: (method, settings) for label, (method, settings, _) in variants.items()}
    content = {"seed": 1, "n_models": 10, "rows": {}, "chosen": {}}
    for forget in FORGET_SETS:
        out, results = compare(forget, 1, 10, methods)
        scores = margin_gaps(out, results)
        rows = [
            {"method": label.split("-")[0], "settings": changes, **scores[label]}
            for label, (_, _, changes) in variants.items()
        ]
        rows.sort(key=lambda row: (row["method"], row["mean"]))
        content["rows"][forget] = rows
        content["chosen"][forget] = {
            name: next(row["settings"] for row in rows if row["method"] == name) for name in GRIDS
        }
        content["none"] = content.get("none", {}) | {forget: scores["none"]}
        content["retrain"] = content.get("retrain", {}) | {forget: scores["retrain"]}
        content["versions"] = results["versions"]
    (HERE / "choose.json").write_text(json.dumps(content, indent=1) + "\n")
    for forget, rows in content["rows"].items():
        for row in rows:
            print(f"{forget:<8} {row['method']:<16} {row['mean']:.3f} {row['settings']}")


if __name__ == "__main__":
    main()
