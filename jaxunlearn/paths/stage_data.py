"""What the stages of a path study read: questions from their sources, as token arrays."""

import dataclasses
import re
from pathlib import Path

from jaxunlearn.data import text

_FORM = "NAME=SOURCE[,n=N][,epochs=E]"
SOURCES = "refusals, tofu:SPLIT, gsm8k:SPLIT, compliance:C|U|R, or a JSON-lines file's path"


@dataclasses.dataclass(frozen=True)
class Part:
    """One stage's data, as written in the settings: `NAME=SOURCE[,n=N][,epochs=E]`.

    Attributes:
        name: of the stage.
        source: `refusals`, `tofu:SPLIT`, `gsm8k:SPLIT`, `compliance:C`, `:U` or `:R` (two ways of
            complying and the refusal of the same prompts), or the path of a JSON-lines file.
        n: how many questions are used, in the source's order; None: all (4,000 refusals, 40 of
            compliance).
        epochs: passes over them.
    """

    name: str
    source: str
    n: int | None = None
    epochs: int = 1


def parse(written: str) -> Part:
    """Reads a stage from its written form.

    Raises:
        ValueError: it has another form; it is shown.
    """
    found = re.fullmatch(r"([\w.-]+)=([^,]+)((?:,(?:n|epochs)=\d+)*)", written)
    if found is None:
        raise ValueError(f"stage is {written!r}; {_FORM} is needed, SOURCE one of {SOURCES}")
    numbers = dict(part.split("=") for part in found[3].split(",")[1:])
    part = Part(found[1], found[2], **{name: int(number) for name, number in numbers.items()})
    if part.epochs < 1 or (part.n is not None and part.n < 1):
        raise ValueError(f"stage is {written!r}; n and epochs must be at least 1")
    return part


def questions(part: Part, seed: int, data_dir: Path | None) -> list[text.Question]:
    """The questions of a stage.

    Args:
        part: the stage's data.
        seed: of generated questions.
        data_dir: folder with `tofu/` and `gsm8k/`; by default each has its environment variable.

    Raises:
        ValueError: an unknown source, a file that is missing or damaged, fewer than `n` questions.
    """
    kind, _, split = part.source.partition(":")
    if part.source == "refusals":
        found = text.refusals(part.n or 4000, seed)
    elif kind == "tofu" and split:
        found = text.tofu(split, data_dir=data_dir and data_dir / "tofu")
    elif kind == "gsm8k" and split:
        found = text.gsm8k(split, data_dir=data_dir and data_dir / "gsm8k", marks=False)
    elif kind == "compliance" and split in ("C", "U", "R"):
        found = text.superficial_prompts(part.n or 40, seed)[split]
    elif Path(part.source).is_file():
        found = text.jsonl(part.source)
    else:
        raise ValueError(f"source of stage {part.name} is {part.source!r}; allowed are {SOURCES}")
    if part.n is not None and len(found) < part.n:
        raise ValueError(f"n of stage {part.name} is {part.n}; {part.source} has {len(found)}")
    return found[: part.n]


def unseen(part: Part, data_dir: Path | None) -> list[text.Question] | None:
    """Questions like a stage's that it does not train on, where there are any: GSM8K's test split.

    The answers of TOFU's invented authors can be known from training alone.
    """
    if part.source != "gsm8k:train":
        return None
    return text.gsm8k("test", data_dir=data_dir and data_dir / "gsm8k", marks=False)
