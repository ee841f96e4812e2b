"""The paper's own configurations, for a TPU VM or a large GPU; not run by us.

Paper: "On the Impossibility of Retrain Equivalence in Machine Unlearning" (arXiv 2510.16629v2),
section 4.1, appendix D, table 2. You bring the weights (base models, in Hugging Face's form, with
the tokenizer and chat template of the instruct sibling) and the data:

    python -m experiments.retrain_equivalence.paper llama-3.2-1b --model DIR --out DIR \
        --instruct skillmix.jsonl --safety sorry_bench.jsonl

`instruct` is Instruct-SkillMix-SDD (4,000 questions) and `safety` SORRY-Bench 202503 without its
encoded styles, 70 % of it, answered by refusals that begin with "Sorry, I can not assist you with
this question." (about 4,500); both as JSON lines of `question` and `answer`. TOFU and GSM8K come
from `TOFU_DIR` and `GSM8K_DIR` (the paper has GSM8K rewritten by GPT-4o).

Hardware and time in the paper: 4 H100; a four-stage fine-tuning takes 2 hours at 1B, 12 at 8B, a
day at 14B. Here prefixes are trained once: 228,000 in place of 324,000 sample-epochs.

Numbers to expect (table 1, after one epoch; forget score, GA / NPO / SimNPO, by position of the
forget stage):

| p | llama-3.2-1b         | llama-3.1-8b           | llama-2-13b        | qwen2.5-1.5b          |
|---|----------------------|------------------------|--------------------|-----------------------|
| 1 | 7.893 / 1.934 / 1.05 | 14.851 / 2.184 / 1.788 | .475 / .469 / .329 | 5.33 / 1.761 / .738   |
| 2 | 5.341 / .66 / 1.471  | 7.203 / 2.212 / 1.652  | .33 / .328 / .343  | 10.082 / 3.997 / 3.559|
| 3 | 6.346 / 1.215 / 1.465| 8.217 / 3.445 / 1.734  | .621 / .616 / .531 | 8.143 / 3.066 / 2.943 |
| 4 | .178 / .046 / .293   | 2.92 / .683 / .668     | .146 / .148 / .196 | .547 / .644 / 1.893   |

and qwen2.5-14b: .119 / .117 / .24, 1.368 / 1.021 / .64, 2.704 / 2.313 / 1.968, -.855 / -.855 /
.991. So p = 4 is the slowest everywhere but for SimNPO on the two Qwen models. TOFU utility of GA
on llama-3.2-1b: -.705, -.27, -1.916, .622. The paper's list of refusal paraphrases is not public;
ours (`evaluate.paths.refusal_phrases`) will move the scores.
"""

import argparse
import dataclasses
from pathlib import Path

from jaxunlearn import paths
from jaxunlearn.core.study import Where

PAPER = paths.Settings(
    losses=("ga", "npo", "simnpo"),
    seed=42,
    max_tokens=1024,
    overlong="drop",
    probe=100,
    attempts=5,
)

# Learning rates and batch sizes of the stages and of the unlearning, and the adapters.
CARDS = {
    "llama-3.2-1b": dict(rank=64, alpha=128.0),
    "llama-3.1-8b": dict(rank=8, alpha=16.0),
    "llama-2-13b": dict(rank=8, alpha=16.0, batch_size=256, unlearn_learning_rate=5e-6),
    "qwen2.5-1.5b": dict(rank=32, alpha=64.0),
    "qwen2.5-14b": dict(rank=8, alpha=16.0, batch_size=256, unlearn_learning_rate=5e-6),
}


def settings(card: str, model: str, instruct: str, safety: str) -> paths.Settings:
    """The settings of a model of the paper, on your files."""
    stages = (
        f"inst={instruct},epochs=10",
        "tofu=tofu:full,epochs=4",
        "math=gsm8k:train,epochs=2",
        f"safety={safety},epochs=2",
    )
    changes = dict(model=model, stages=stages, forget="safety") | CARDS[card]
    return dataclasses.replace(PAPER, **changes)


def main() -> None:
    """Runs or resumes one configuration."""
    parser = argparse.ArgumentParser(description="A configuration of the paper.")
    parser.add_argument("card", choices=CARDS)
    for name in ("model", "instruct", "safety"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    wanted = settings(given.card, given.model, given.instruct, given.safety)
    job = paths.prepare(wanted, Where(given.out, resume=True))
    paths.execute(job, progress=lambda *now: print(*now, flush=True))


if __name__ == "__main__":
    main()
