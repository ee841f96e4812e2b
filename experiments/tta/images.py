"""RMT and its peers on CIFAR-10 under fifteen corruptions.

Paper:     Robust Mean Teacher, arXiv 2211.13081 (CVPR 2023), which has WRN-28-10 and CIFAR-10-C
Command:   python -m experiments.tta.images continual     (mixed, correlated, gradual, rounds,
           ablations; TFDS_DATA_DIR names the folder of prepared data sets; it goes on after an
           interruption)
Hardware:  2 CPU cores, at most 2 hours a setting
Data:      2,000 of the 10,000 test images of CIFAR-10 (250 a sub-domain in "gradual"), whose files
           went through JPEG once, corrupted by our own corruptions with the constants of CIFAR-10-C
           at severity 5; frost is a procedural ice texture
Network:   WRN-16-1 of `experiments.tta.source`, with at least 88 % on clean test images
Methods:   with the published settings for CIFAR-10: Adam at 1e-3 (SAR, AdaContrast: SGD), batches
           of 200, RMT with replay of all 50,000 training images and a warm-up of 50,000
Seeds:     0, 1, 2 (orders of images, augmentations, projectors)
Arithmetic: a forward pass of an image is 0.053 GFLOP, a step of TENT 3 of them, of RMT 10, of
           CoTTA up to 36. 30,000 images x 3 seeds: TENT 14 TFLOP, RMT 48 and 24 of warm-up, CoTTA
           172; at 60 GFLOP/s 4, 20 and 48 minutes
To show (fixed before the run), means over seeds, in points of error: BN-1 at least 8 below the
           source network; RMT at least 1.5 below BN-1 and below TENT; over five rounds RMT's last
           at most 0.5 above its first, TENT's above its first; with sorted labels RMT worse than
           LAME

Writes results.json beside this file; blocks are kept under runs/tta.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress as Bar

from jaxunlearn import tta
from jaxunlearn.core import mesh
from jaxunlearn.core.study import Where
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.settings import Settings

HERE, RUNS = Path(__file__).parent, Path("runs/tta")
COMMON: dict[str, Any] = {
    "data": "cifar10",
    "network": "wrn-16-1",
    "weights": str(HERE / "wrn-16-1.safetensors"),
    "n_val": 2000,
    "batch_size": 200,
    "n_seeds": 3,
}
EVERY = tuple(tta.METHODS)
SOME = ("source", "bn", "tent", "eta", "sar", "cotta", "rotta", "roid", "lame", "rmt")
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "continual": ({}, EVERY),
    "mixed": ({"setting": "mixed"}, SOME),
    "correlated": ({"setting": "correlated"}, SOME),
    "gradual": (
        {"setting": "gradual", "n_val": 250, "batch_size": 125},
        ("source", "bn", "tent", "rmt"),
    ),
    "rounds": ({"rounds": 5}, ("source", "bn", "tent", "rmt")),
    "ablations": ({}, ()),
}


def methods(setting: str) -> dict[str, Method]:
    """The methods of a setting, by name."""
    if setting != "ablations":
        return tta.choice.chosen(SETTINGS[setting][1])
    rmt = tta.METHODS["rmt"]
    return {
        "source": tta.METHODS["source"](),
        "rmt": rmt(),
        "cross-entropy for symmetric": rmt(alpha=0.0),
        "no contrastive loss": rmt(lambda_cont=0.0),
        "no replay": rmt(lambda_src=0.0),
        "no warm-up": rmt(warm_up_samples=0),
    }


def run(setting: str) -> dict[str, Any]:
    """One setting, all methods and seeds."""
    change, _ = SETTINGS[setting]
    shards = mesh.cores() if 200 % mesh.cores() == 0 else 1
    options: dict[str, Any] = COMMON | change | {"batch_shards": shards}
    settings = Settings(**options)
    where = Where(RUNS / setting, resume=True, mesh=mesh.make({"data": shards}))
    job = tta.study.prepare(settings, where, methods(setting))
    with Bar() as bar:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        try:
            return tta.study.execute(job, progress)
        finally:
            job.folder.end()


def main(names: list[str]) -> int:
    """Runs the named settings, or all, and adds them to results.json."""
    mesh.start(mesh.cores())
    file = HERE / "results.json"
    for name in names or SETTINGS:
        results = run(name)
        kept = json.loads(file.read_text()) if file.exists() else {}
        wanted = (
            "domains",
            "errors",
            "error",
            "drift",
            "agreement",
            "clean_error",
            "finite",
            "methods",
        )
        kept[name] = {key: results[key] for key in (*wanted, "seconds", "settings", "versions")}
        file.write_text(json.dumps(kept, indent=1) + "\n")
        for method, error in results["error"].items():
            print(
                f"{name} {method}: {100 * error['mean']:.2f} +- {100 * (error['stderr'] or 0):.2f}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
