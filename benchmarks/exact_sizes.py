"""`python -m benchmarks.exact_sizes`: disk and memory of S3T stores as m, L and B grow.

A ViT of 12 layers and width 64, all of whose layers are adapted (rank 8, queries and values); 32
images of 28x28 in a slice on average, read once. Every figure is of a process of its own, above
what it needed with JAX started and the images read: `train` writes the store, `serve` opens it and
answers 256 images. Writes benchmarks/results/exact_sizes.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from jaxunlearn.core import mesh, records
from jaxunlearn.exact import orders, planner, service, sliceable
from jaxunlearn.exact import plan as plans
from jaxunlearn.nn.images import vit

SIZES = ((5, 4, 1), (5, 4, 2), (5, 4, 4), (5, 6, 4), (5, 2, 2), (10, 4, 4), (20, 4, 4))
CONFIG = vit.Config((28, 28, 1), 7, 64, 12, 4, 128, 10)
RECIPE = plans.StageRecipe(
    rank=8, alpha=16.0, learning_rate=4e-3, epochs=1, batch_size=32, dropout=0.0
)


def plan_of(shards: int, slices: int, budget: int) -> plans.Plan:
    """Of which all layers are adapted."""
    table = orders.cyclic(slices, budget)
    return plans.make(shards, table, 64, recipe=RECIPE, layers_per_slice=CONFIG.n_layers // slices)


def side(folder: Path, what: str, sizes: tuple[int, int, int]) -> float | None:
    """Peak memory in MiB of training a store, or of serving from it."""
    plan, rng = plan_of(*sizes), np.random.default_rng(0)
    n = 32 * plan.n_shards * plan.n_slices
    examples = {
        "x": rng.normal(size=(n, *CONFIG.image)).astype(np.float32),
        "y": rng.integers(0, 10, n).astype(np.int32),
    }
    if what == "serve":
        return harness.peak_of(lambda: service.Service(folder).predict(examples["x"][:256]))
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])
    ids = [f"image-{i}" for i in range(n)]
    store = service.create(folder, plan, CONFIG, base, ids, examples)
    devices = mesh.make({"models": jax.device_count()})
    return harness.peak_of(lambda: store.train(examples, mesh=devices))


def measured(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """One store."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "store"
        peaks = {}
        for what in ("train", "serve"):
            code = (
                "from pathlib import Path; from jaxunlearn.core import mesh;"
                "mesh.start(mesh.cores()); from benchmarks import exact_sizes;"
                f"print(exact_sizes.side(Path({str(folder)!r}), {what!r}, {sizes!r}))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            peaks[f"{what}_peak_mib"] = json.loads(done.stdout.splitlines()[-1])
        disk = {
            part: sum(file.stat().st_size for file in (folder / part).iterdir())
            for part in ("orders", "base")
        }
    base = jax.eval_shape(lambda: vit.build(CONFIG).init(jax.random.key(0))[0])
    outlook = planner.outlook(plan_of(*sizes), sliceable.of_vit(CONFIG), base)
    return {
        "shards": sizes[0],
        "slices": sizes[1],
        "budget": sizes[2],
        "requests": outlook.requests,
        "stages": outlook.stages,
        "planned_bytes": outlook.bytes,
        "order_bytes": disk["orders"],
        "base_bytes": disk["base"],
    } | peaks


def main() -> None:
    """Measures all sizes."""
    where, rows = harness.machine(), []
    for sizes in SIZES:
        rows.append(measured(sizes))
        print(rows[-1], flush=True)
    records.write(
        Path(__file__).parent / "results" / "exact_sizes.json", {"machine": where, "rows": rows}
    )


if __name__ == "__main__":
    main()
