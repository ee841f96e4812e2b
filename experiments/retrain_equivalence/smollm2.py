"""Staged training and local unlearning of a real language model, in every insertion order.

Paper: "On the Impossibility of Retrain Equivalence in Machine Unlearning" (arXiv 2510.16629),
section 4.1, at a small size: four stages, the forget stage at each of four positions (13 stage
runs), then GA, NPO and SimNPO from every path (12 runs).

    SMOLLM2_GGUF=... TOFU_DIR=... GSM8K_DIR=... python -m experiments.retrain_equivalence.smollm2

Hardware: 2-core CPU. Time, by arithmetic: 173,000 training tokens of stages and 55,000 of
unlearning at 150 tokens a second (25 minutes), 60 measurements of 7 seconds (7 minutes), sampled
answers of 17 models (6 minutes). The first runs of unlearning took 200 seconds each, so that it is
rather an hour and a quarter. Interrupted, it goes on where it was.

What differs from the paper: SmolLM2-135M-Instruct (weights of 4 bits, computed in float32) in place
of base models of 1 to 14 billion parameters; 40 to 80 questions a stage in place of 4,000 to 8,000;
adapters of rank 8 and larger learning rates, since there are few steps; TOFU's questions about the
real world in place of Instruct-SkillMix; refusals about invented objects in place of SORRY-Bench,
which must not be passed on; GSM8K as it is. One seed. The learning rates come from two runs on
another seed with two of the stages, on which GA lowered the refusals' log-probability by 5 nats a
token in 16 steps of 2e-4.

What is expected, from the paper: the path whose forget stage came last forgets slowest (the paper
has exceptions for SimNPO), and paths that were equal on the task before differ afterwards. There is
no threshold: results.json shows what came out. Utility and accuracy of GSM8K are of the test split;
at this size the likelihood of the answer says more than the accuracy.
"""

import json
import os
import sys
from pathlib import Path

from jaxunlearn import paths
from jaxunlearn.cli.paths import draw
from jaxunlearn.core import records
from jaxunlearn.core.study import Where

HERE = Path(__file__).parent

SETTINGS = dict(
    stages=(
        "facts=tofu:world_facts,n=80,epochs=3",
        "tofu=tofu:full,n=80,epochs=3",
        "math=gsm8k:train,n=48,epochs=1",
        "safety=refusals,n=64,epochs=3",
    ),
    losses=("ga", "npo", "simnpo"),
    rank=8,
    alpha=16.0,
    learning_rate=5e-4,
    batch_size=8,
    unlearn_learning_rate=3e-4,
    unlearn_batch_size=8,
    unlearn_epochs=1,
    every=2,
    seed=42,
    max_tokens=224,
    overlong="drop",  # the longest solutions of GSM8K
    probe=10,
    attempts=1,
)


def main(out: Path = Path("runs/retrain_equivalence/smollm2")) -> None:
    """Runs or resumes the study in `out`, and leaves its results beside this file."""
    settings = paths.Settings(model=os.environ["SMOLLM2_GGUF"], **SETTINGS)  # type: ignore[arg-type]
    job = paths.prepare(settings, Where(out, resume=True))
    results = paths.execute(
        job, progress=lambda phase, done, total: print(phase, done, total, flush=True)
    )
    results["settings"]["model"] = Path(settings.model).name
    records.write(HERE / "smollm2.json", json.loads(json.dumps(results)))
    draw(results, HERE / "smollm2.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
