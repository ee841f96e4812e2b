"""S3T on a language model: TOFU's authors ask to be forgotten.

Paper:     S3T, arXiv 2406.16257 (ICLR 2025), which tunes Llama-2-7B and larger on Alpaca; TOFU is
           what its third-party reproduction used. Here it is SmolLM2-135M-Instruct (weights of 4
           bits, computed in float32)
Command:   SMOLLM2_GGUF=... TOFU_DIR=... python -m experiments.s3t.tofu
           (it goes on after an interruption)
Hardware:  2 CPU cores, about half an hour
Data:      the first 16 authors of TOFU, 20 questions each. An author's questions share a slice: 2
           authors a slice, handed out by a fixed permutation
Plan:      m = 2 shards, L = 4 slices, two of the topmost 8 of 30 layers a slice, B = 2 cyclic
           orders, the first of which is that of B = 1. LoRA of rank 8, alpha 16, on all kernels of
           a layer; AdamW at 1e-3, linear to 0, 4 epochs a stage, batch 8; no dropout. One seed
Measured:  per-token probability of the answers, averaged over living shards as the ensemble serves
           it: its geometric mean a question, then the mean over questions. On the slices that a
           prefix has read, and on those that it has not
Requests:  an author at random, so uniform over slices; 200 streams of 24. A dead system answers as
           the base does
Arithmetic: 4 orders x 4 epochs x (40 + 80 + 120 + 160) rows = 6,400 rows read, of about 12 billion
           operations a row (8 trained layers at most, the output layer at answers only): 80e12, 20
           minutes at 70e9 a second
To show (no threshold): the probability of what was learned grows with the stages; of what was
           deleted it falls back to that of models that never saw it, since they are such models;
           under requests B = 2 keeps more than B = 1

Writes tofu.json beside this file; lanes are kept under runs/s3t/tofu.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import disk, mesh, records
from jaxunlearn.core.keys import fold
from jaxunlearn.data import text
from jaxunlearn.exact import curves, deletion, orders, prefixes, serving, sliceable
from jaxunlearn.exact import plan as plans
from jaxunlearn.nn.language import decoder

HERE, RUNS = Path(__file__).parent, Path("runs/s3t/tofu")
SHARDS, SLICES, BUDGETS, AUTHORS, QUESTIONS = 2, 4, (1, 2), 16, 20
STREAMS, REQUESTS, LIFETIMES = 200, 24, 20_000
CAPACITY = AUTHORS * QUESTIONS // (SHARDS * SLICES)
RECIPE = plans.StageRecipe(
    rank=8, alpha=16.0, learning_rate=1e-3, epochs=4, batch_size=8, dropout=0.0
)
PLAN = plans.make(
    SHARDS, orders.cyclic(SLICES, max(BUDGETS)), CAPACITY, recipe=RECIPE, layers_per_slice=2
)


def read() -> tuple[decoder.Pretrained, dict[str, np.ndarray], np.ndarray]:
    """The model, the examples, and the slice of each."""
    pretrained = decoder.from_pretrained(os.environ["SMOLLM2_GGUF"])
    questions = text.tofu("full")[: AUTHORS * QUESTIONS]
    template = text.TEMPLATES["chatml"]  # the model's own without its default system prompt
    sequences = text.encode(
        pretrained.tokenizer, questions, template=template, system=None, max_tokens=192
    )
    arrays = {"x": sequences.tokens, "where": sequences.where, "labels": sequences.labels}
    place = np.random.default_rng(0).permutation(AUTHORS) % (SHARDS * SLICES)
    return pretrained, arrays, place[np.arange(len(questions)) // QUESTIONS]


def score(probabilities: Any, labels: Any) -> jax.Array:
    """Geometric means over an answer's tokens, the mean over questions."""
    valid = labels >= 0
    logp = jnp.where(valid, jnp.log(jnp.maximum(probabilities, 1e-30)), 0).sum(-1)
    return jnp.mean(jnp.exp(logp / valid.sum(-1)))


def outputs_of(base: Any, network: sliceable.Network, arrays: dict, places: np.ndarray):
    """Probabilities of every order at every depth, [m, B, L, n, R], and of the base."""
    file = RUNS / "outputs.npz"
    if not file.exists():
        start = time.monotonic()
        trained = prefixes.train(
            network,
            base,
            PLAN,
            prefixes.arrange(PLAN, arrays, places),
            folder=RUNS / "lanes",
            progress=lambda *now: print(*now, f"{time.monotonic() - start:.0f} s", flush=True),
        )
        seconds = time.monotonic() - start
        weights = serving.stacked(
            [[prefixes.assembled(PLAN, trained, a, b) for b in range(2)] for a in range(SHARDS)]
        )
        outputs = serving.all_outputs(network, PLAN, base, weights, arrays, chunk=16)
        nothing = deletion.Served(np.zeros(SHARDS, int), np.zeros(SHARDS, int))
        chosen = serving.chosen(PLAN, network, weights, nothing)
        alive = np.arange(SHARDS) == 0
        before = serving.predict(network, PLAN, base, chosen, arrays, alive, chunk=16)
        disk.write_npz(file, {"outputs": outputs, "base": before, "seconds": np.asarray(seconds)})
    with np.load(file) as stored:
        return stored["outputs"], stored["base"], float(stored["seconds"])


def by_stages(outputs: np.ndarray, labels: np.ndarray, places: np.ndarray) -> dict[str, list]:
    """Means over shards and orders: of slices that a prefix has read, and of all others."""
    rows: dict[str, list] = {"read": [], "not read": []}
    for depth in range(1, SLICES + 1):
        read, others = [], []
        for shard, order in np.ndindex(SHARDS, PLAN.budget):
            slices = [shard * SLICES + s for s in PLAN.orders[shard][order][:depth]]
            for chosen, into in ((True, read), (False, others)):
                some = np.isin(places, slices) == chosen
                into.append(float(score(outputs[shard, order, depth - 1][some], labels[some])))
        rows["read"].append(float(np.mean(read)))
        rows["not read"].append(float(np.mean(others)))
    return rows


def under_requests(outputs, before: float, labels: np.ndarray) -> dict[int, dict]:
    """The score on all authors in the course of deletions, by budget."""
    key = fold(jax.random.key(0), "requests")
    hits = deletion.requests(SHARDS, SLICES, None, (STREAMS, REQUESTS), key)
    by_budget = {}
    for budget in BUDGETS:
        table = PLAN.table[:, :budget]
        curve = curves.follow(score, outputs, labels, table, hits)
        whole = np.where(curve.living > 0, curve.score, before)
        lives = deletion.simulate(table, None, LIFETIMES, fold(key, "lifetimes", budget))
        by_budget[budget] = {
            "score": whole.mean(0).tolist(),
            "alive": (curve.living > 0).mean(0).tolist(),
            "depth": curve.depth.mean((0, 2)).tolist(),
            "requests": {"mean": float(lives.mean()), "std": float(lives.std(ddof=1))},
            "expected": dataclasses.asdict(deletion.uniform(SHARDS, SLICES, budget)),
        }
    return by_budget


def main() -> None:
    """Trains, and measures."""
    mesh.start(1)  # one lane at a time on both cores: two would not share the output layer's table
    pretrained, arrays, places = read()
    network = sliceable.of_decoder(pretrained.config)
    RUNS.mkdir(parents=True, exist_ok=True)
    outputs, base, seconds = outputs_of(pretrained.params, network, arrays, places)
    labels = arrays["labels"]
    before = float(score(base, labels))
    results = {
        "tokens": list(map(int, arrays["x"].shape)),
        "seconds": seconds,
        "base": before,
        "by_stages": by_stages(outputs, labels, places),
        "budgets": under_requests(outputs, before, labels),
    }
    print(json.dumps({k: results[k] for k in ("tokens", "seconds", "base", "by_stages")}))
    records.write(HERE / "tofu.json", results)


if __name__ == "__main__":
    main()
