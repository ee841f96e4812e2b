"""What a path study is made of; nothing heavy is imported here."""

import dataclasses
from typing import Literal

LORA_TARGETS = r"layers/(q|v|o|gate|up|down)/kernel"  # what the paper adapts: no keys, no head


@dataclasses.dataclass(frozen=True)
class Settings:
    """A path study; the defaults are those of the paper for Llama-3.2-1B, its data apart.

    Attributes:
        model: folder of a base model in Hugging Face's form, or a `.gguf` file.
        stages: the stages in their order without the forget stage's position, each
            `NAME=SOURCE[,n=N][,epochs=E]`; a SOURCE is `refusals`, `compliance:C` (or `U`, `R`),
            `tofu:SPLIT`, `gsm8k:SPLIT`, or
            the path of a JSON-lines file with `question` and `answer`.
        forget: name of the stage that is forgotten. If all its answers begin with "Sorry, I can not
            assist", the forget score is that of refusal phrases, else of the answers themselves.
        orders: `insertions` (the forget stage at every position, the others in their order),
            `permutations` (all of them), or orders written as `a,b,c`.
        losses: losses of the unlearning: ga, npo, simnpo (summed, the paper's), simnpo_length.
        rank: LoRA's r, rank of the adapters.
        alpha: LoRA's alpha; the adapters' scale is alpha / rank.
        learning_rate: learning rate of the stages, AdamW without weight decay; 2 % warm-up, 2 %
            decay to a tenth.
        batch_size: sequences per step of a stage.
        unlearn_learning_rate: learning rate of the unlearning.
        unlearn_batch_size: sequences per step of the unlearning.
        unlearn_epochs: passes over the forget set.
        every: steps of unlearning between measurements.
        seeds: number of repetitions of everything, with other shuffles and adapters.
        seed: seed of all randomness; the paper's is 42.
        max_tokens: the most tokens of a text.
        overlong: treatment of a question with its answer that has more: `error` or `drop`.
        probe: number of measured questions of each stage; those of the test split where the
            source is `gsm8k:train`, else of the stage itself.
        attempts: answers sampled for each measured question of a `gsm8k` stage, to count those that
            are right (the paper: 5); 0: none.
        lane_width: runs of unlearning computed together; 0: one on a CPU, else as many as the
            memory holds by a rough estimate.
        model_shards: devices that each copy of the network is split over.
        remat: recompute layers in the backward pass, for longer texts in the same memory.
    """

    model: str = ""
    stages: tuple[str, ...] = (
        "tofu=tofu:full,epochs=4",
        "math=gsm8k:train,epochs=2",
        "safety=refusals,epochs=2",
    )
    forget: str = "safety"
    orders: tuple[str, ...] = ("insertions",)
    losses: tuple[str, ...] = ("ga", "npo", "simnpo")
    rank: int = 64
    alpha: float = 128.0
    learning_rate: float = 1e-5
    batch_size: int = 128
    unlearn_learning_rate: float = 1e-5
    unlearn_batch_size: int = 128
    unlearn_epochs: int = 1
    every: int = 2
    seeds: int = 1
    seed: int = 0
    max_tokens: int = 512
    overlong: Literal["error", "drop"] = "error"
    probe: int = 24
    attempts: int = 0
    lane_width: int = 0
    model_shards: int = 1
    remat: bool = False
