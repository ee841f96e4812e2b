"""What the stages of a path study read: questions from their sources, as token arrays."""

import dataclasses
import re
from pathlib import Path

from jaxunlearn.data import text

_FORM = "NAME=SOURCE[,n=N][,epochs=E]"
SOURCES = "refusals, tofu:SPLIT, gsm8k:SPLIT, compliance:C|U|R, or a JSON-lines file's path"


@dataclasses.dataclass(frozen=True)
class StageSource:
    """One stage's data, as written in the settings: `NAME=SOURCE[,n=N][,epochs=E]`.

    Attributes:
        name: the stage's name.
        source: `refusals`, `tofu:SPLIT`, `gsm8k:SPLIT`, `compliance:C`, `:U` or `:R` (two ways of
            complying and the refusal of the same prompts), or the path of a JSON-lines file.
        n: number of questions used, in the source's order; None: all (4,000 refusals, 40 of
            compliance).
        epochs: passes over them.
    """

    name: str
    source: str
    n: int | None = None
    epochs: int = 1


def parse(written: str) -> StageSource:
    """Reads a stage from its written form.

    Raises:
        ValueError: it has another form; it is shown.
    """
    match = re.fullmatch(r"([\w.-]+)=([^,]+)((?:,(?:n|epochs)=\d+)*)", written)
    if match is None:
        raise ValueError(f"stage is {written!r}; {_FORM} is needed, SOURCE one of {SOURCES}")
    numbers = dict(option.split("=") for option in match[3].split(",")[1:])
    counts = {name: int(number) for name, number in numbers.items()}
    stage = StageSource(match[1], match[2], **counts)
    if stage.epochs < 1 or (stage.n is not None and stage.n < 1):
        raise ValueError(f"stage is {written!r}; n and epochs must be at least 1")
    return stage


def questions(stage: StageSource, seed: int, data_dir: Path | None) -> list[text.Question]:
    """The questions of a stage.

    Args:
        stage: the stage's source.
        seed: seed of generated questions.
        data_dir: folder with `tofu/` and `gsm8k/`; by default each has its environment variable.

    Raises:
        ValueError: an unknown source, a file that is missing or damaged, fewer than `n` questions.
    """
    kind, _, split = stage.source.partition(":")
    if stage.source == "refusals":
        read = text.refusals(stage.n or 4000, seed)
    elif kind == "tofu" and split:
        read = text.tofu(split, data_dir=data_dir and data_dir / "tofu")
    elif kind == "gsm8k" and split:
        read = text.gsm8k(split, data_dir=data_dir and data_dir / "gsm8k", marks=False)
    elif kind == "compliance" and split in ("C", "U", "R"):
        read = text.superficial_prompts(stage.n or 40, seed)[split]
    elif Path(stage.source).is_file():
        read = text.jsonl(stage.source)
    else:
        raise ValueError(f"source of stage {stage.name} is {stage.source!r}; allowed are {SOURCES}")
    if stage.n is not None and len(read) < stage.n:
        raise ValueError(f"n of stage {stage.name} is {stage.n}; {stage.source} has {len(read)}")
    return read[: stage.n]


def unseen(stage: StageSource, data_dir: Path | None) -> list[text.Question] | None:
    """Questions like a stage's that it does not train on, where there are any: GSM8K's test split.

    The answers of TOFU's invented authors can be known from training alone.
    """
    if stage.source != "gsm8k:train":
        return None
    return text.gsm8k("test", data_dir=data_dir and data_dir / "gsm8k", marks=False)
