"""Chooses the default settings of the methods: nine settings each, on another seed than is shown.

Command:   python -m experiments.digits.choose
Hardware:  2 CPU cores; about 8 minutes, most of it compilation
Protocol:  the default job with seed 1 (its own models and oracles); every method gets the same
           budget of nine settings; the best is the one with the least mean of the three groups'
           mean KLOM (forget, retain, validation), that is, oracles are used to choose. The defaults
           in jaxunlearn/unlearn are the winners. Released code uses, for CIFAR-10 networks:
           SCRUB learning rate 0.01, SSD alpha 10 and lam 1, matching
           batches of 512, learning rate 1e-4, 4 epochs. DM-Direct has nothing to choose.
Writes choose.json beside this file: every setting and its scores.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

from experiments.grid import candidates
from jaxunlearn import comparison
from jaxunlearn.core import mesh

HERE = Path(__file__).parent

GRIDS = {
    "finetune": {"learning_rate": (0.05, 0.1, 0.2), "epochs": (3, 5, 10)},
    "ascent": {"learning_rate": (0.003, 0.01, 0.03), "epochs": (3, 5, 10)},
    "ascent_descent": {"learning_rate": (0.01, 0.03, 0.1), "forget_weight": (0.02, 0.05, 0.1)},
    "random_labels": {"learning_rate": (0.01, 0.02, 0.05), "epochs": (1, 3, 5)},
    "scrub": {"learning_rate": (0.01, 0.03, 0.1), "ascent_epochs": (1, 3, 5)},
    "ssd": {"alpha": (10.0, 20.0, 30.0), "lam": (0.5, 1.0, 2.0)},
    "oracle_matching": {"learning_rate": (1e-3, 3e-3, 1e-2), "epochs": (5, 10, 20)},
    "dmm": {"learning_rate": (1e-3, 3e-3, 1e-2), "epochs": (5, 10, 20)},
}


def main() -> None:
    """Runs all settings and writes their scores, best first."""
    mesh.start(mesh.cores())
    variants = candidates(GRIDS)
    chosen = {label: (method, settings) for label, (method, settings, _) in variants.items()}
    with tempfile.TemporaryDirectory() as folder:
        results = comparison.run(
            comparison.Settings(seed=1), chosen, out=Path(folder) / "run", mesh=mesh.make()
        )
    rows = []
    for label, (_, settings) in chosen.items():
        klom = {group: row["mean"] for group, row in results["methods"][label]["klom"].items()}
        score = sum(klom.values()) / 3
        rows.append(
            {
                "method": label.split("-")[0],
                "score": score,
                "klom": klom,
                "settings": dataclasses.asdict(settings),
            }
        )
    rows.sort(key=lambda row: (row["method"], row["score"]))
    content = {"seed": 1, "versions": results["versions"], "rows": rows}
    (HERE / "choose.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(f"{row['method']:<16} {row['score']:.3f} {row['klom']} {row['settings']}")


if __name__ == "__main__":
    main()
