"""Questions with answers from files of JSON lines: TOFU, GSM8K, or the user's own."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxunlearn.core.readers import parse_json, reading

_TOFU = "huggingface.co/datasets/locuslab/TOFU"
_GSM8K = "github.com/openai/grade-school-math, grade_school_math/data"
_MARKS = re.compile(r"<<[^<>]*>>")


class Question(NamedTuple):
    """A question and the answer to it.

    Attributes:
        question: what the user says.
        answer: what the model is to say.
        id: where it comes from, e.g. "tofu/forget10:17", the 17th line of a file; errors name it.
        extra: whatever else is known of it, e.g. `paraphrased_answer`.
    """

    question: str
    answer: str
    id: str
    extra: Mapping[str, Any] = MappingProxyType({})


def jsonl(
    path: str | os.PathLike, *, question: str = "question", answer: str = "answer"
) -> list[Question]:
    r"""Reads JSON lines in UTF-8, one object each; blank lines are skipped.

    `question` and `answer` name the fields of an object.

    Returns:
        The questions in the order of the file; `id` is "name:line", the name without its ending,
        and `extra` holds all other fields.

    Raises:
        ValueError: there is no such file or nothing in it; a line that is no JSON object, lacks a
            field, or has one that is empty or no text, or half of a character ("\ud83d"). The
            message names the file and the line.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"path is {str(path)!r}; there is no such file")
    return _read(path, path.stem, question, answer)


def tofu(split: str, *, data_dir: str | os.PathLike | None = None) -> list[Question]:
    """A split of TOFU (arXiv 2401.06121): questions about 200 invented authors.

    Args:
        split: "full" (4,000), "forget01", "forget05", "forget10", "retain99", "retain95",
            "retain90", "real_authors", "world_facts", or one of those with false answers beside
            the true one, `<name>_perturbed` of forget01, forget05, forget10, retain, real_authors
            and world_facts; any file `<split>.json` in the folder.
        data_dir: the folder with the files of locuslab/TOFU; default `$TOFU_DIR`.

    Returns:
        The questions in the order of the file. `extra` of the perturbed sets has
        `perturbed_answer`, a list of 5 (3 for real authors and world facts), and for the invented
        authors `paraphrased_answer` and `paraphrased_question`.

    Raises:
        ValueError: no folder or no such split in it, or a bad line, as `jsonl` says.
    """
    path = _file("tofu", split, ".json", data_dir, _TOFU)
    return _read(path, f"tofu/{split}", "question", "answer")


def gsm8k(
    split: str, *, data_dir: str | os.PathLike | None = None, marks: bool = True
) -> list[Question]:
    """A split of GSM8K (arXiv 2110.14168): word problems from grade school.

    Args:
        split: "train" (7,473) or "test" (1,319).
        data_dir: the folder with `train.jsonl` and `test.jsonl`; default `$GSM8K_DIR`.
        marks: whether to keep the calculator's marks, `<<48/2=24>>`, as they are published.

    Returns:
        The questions in the order of the file. An answer is the reasoning and a last line
        "#### 72"; `extra` has that number without commas, `{"final": "72"}`.

    Raises:
        ValueError: no folder or no such split in it, or a bad line, as `jsonl` says.
    """
    path = _file("gsm8k", split, ".jsonl", data_dir, _GSM8K)

    def with_final(question: Question) -> Question:
        reasoning, mark, final = question.answer.rpartition("####")
        if not mark or not reasoning.strip() or not final.strip():
            raise ValueError("the answer must be a text and then #### and a number")
        answer = question.answer if marks else _MARKS.sub("", question.answer)
        extra = {**question.extra, "final": final.strip().replace(",", "")}
        return question._replace(answer=answer, extra=extra)

    return _read(path, f"gsm8k/{split}", "question", "answer", with_final)


def _file(
    what: str, split: str, ending: str, data_dir: str | os.PathLike | None, source: str
) -> Path:
    variable = f"{what.upper()}_DIR"
    place = data_dir or os.environ.get(variable)
    if not place:
        raise ValueError(
            f"{what}: data_dir is None and {variable} is not set; one of them must name the folder "
            f"with the files of {source}"
        )
    folder = Path(os.path.expanduser(place))
    splits = sorted(path.stem for path in folder.glob(f"*{ending}"))
    if not splits:
        raise ValueError(
            f"{what}: {folder} holds no files *{ending}; put those of {source} there, or name "
            f"another folder by data_dir or {variable}"
        )
    if split not in splits:
        raise ValueError(
            f"{what}: split is {split!r}; {folder} has {', '.join(splits)} (more at {source})"
        )
    return folder / f"{split}{ending}"


def _read(
    path: Path,
    name: str,
    question: str,
    answer: str,
    change: Callable[[Question], Question] = lambda question: question,
) -> list[Question]:
    questions = []
    # As bytes, which end at \n only: a text may hold any other character that ends a line.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            with reading(where := f"{path}, line {number}"):
                row = parse_json(line, where)
                questions.append(change(_question(row, question, answer, f"{name}:{number}")))
    if not questions:
        raise ValueError(f"{path} is empty; a JSON object on each line is needed")
    return questions


def _question(row: Any, question: str, answer: str, name: str) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} where a JSON object is needed")
    for field in (question, answer):
        if field not in row:
            raise ValueError(f"there is no field {field!r}; the fields are {sorted(row)}")
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field} is {row[field]!r}; a text that is not empty is needed")
    extra = {key: value for key, value in row.items() if key not in (question, answer)}
    return Question(row[question], row[answer], name, extra)
