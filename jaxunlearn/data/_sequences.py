"""Questions and answers as token arrays that say which tokens are learned."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.data._chat import SYSTEM, ChatTemplate
from jaxunlearn.data._questions import Question

Tokenizer: TypeAlias = Any  # a `tokenizers.Tokenizer`, only received here
Ids: TypeAlias = list[int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """N texts of at most T tokens, each with at most R tokens of response.

    A pytree whose leaves have a common leading axis, so `batches(sequences, rows, size)` draws from
    it. The language model's head is needed at the positions `where` only.

    Attributes:
        tokens: int32 [N, T], padded on the right; they end with the last token of the response.
        where: int32 [N, R], the positions whose logits predict the response, each one before the
            token that it predicts; 0 at padding.
        labels: int32 [N, R], the tokens of the response with its end of turn; -1 at padding.
    """

    tokens: Any
    where: Any
    labels: Any

    @property
    def lengths(self) -> Any:
        """How many tokens the response has, int32 [N]."""
        return (self.labels >= 0).sum(-1, dtype="int32")


def encode(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    template: ChatTemplate,
    system: str | None = SYSTEM,
    max_tokens: int,
    overlong: str = "error",
    multiple: int = 8,
    pad: int = 0,
) -> Sequences:
    """Questions with their answers, to train on.

    Learned are the tokens of the answer and the end of turn, nothing else. What the format puts
    after them is left out: in a causal model it can change no prediction of theirs.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that neither pads nor truncates.
        questions: N of them.
        template: the chat format.
        system: the system prompt; None or "" for none.
        max_tokens: the most tokens that prompt and response may have, e.g. the model's context.
        overlong: "error", or "drop" to leave out the questions that have more.
        multiple: T and R are rounded up to multiples of it (T to `max_tokens` at most), so that
            few different programs are compiled.
        pad: the token that fills up, any of the model's; nothing depends on it.

    Returns:
        NumPy arrays; N rows in the order of the questions, fewer if some are dropped.

    Raises:
        ValueError: a response without tokens or, unless dropped, a text that is too long, naming
            its `id`; a tokenizer that pads, truncates, or lacks the tokens of the format; no
            questions, or none left.
    """
    if overlong not in ("error", "drop"):
        raise ValueError(f"overlong is {overlong!r}; error and drop are allowed")
    _check("encode", tokenizer, questions, template, max_tokens, multiple)
    names = [question.id for question in questions]
    heads = _prompts(tokenizer, questions, template, system)
    answers = [question.answer for question in questions]
    tails = _responses(tokenizer, answers, names, template, end_of_turn=True)
    if overlong == "drop":
        both = zip(heads, tails, strict=True)
        fitting = [(head, tail) for head, tail in both if len(head) + len(tail) <= max_tokens]
        if not fitting:
            raise ValueError(
                f"encode: each of the {len(heads)} questions has more than max_tokens = "
                f"{max_tokens} tokens; none is left"
            )
        heads, tails = map(list, zip(*fitting, strict=True))
    else:
        _check_lengths("encode", heads, tails, names, max_tokens, " or drop it by overlong='drop'")
    return _sequences(heads, tails, max_tokens, multiple, pad)


def encode_responses(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    responses: Sequence[Sequence[str]],
    *,
    template: ChatTemplate,
    system: str | None = SYSTEM,
    max_tokens: int,
    end_of_turn: bool = True,
    multiple: int = 8,
    pad: int = 0,
) -> Sequences:
    """Several responses to each question, to evaluate: true and false answers, refusals.

    Of the N questions with J responses each, response j to question n is row n J + j of the result.
    The questions' own answers are not used. `end_of_turn` says whether the end of turn belongs to a
    response: the probability that an answer begins with a phrase needs False. All else is as in
    `encode`.

    Raises:
        ValueError: as in `encode`, or unequal numbers of responses.
    """
    _check("encode_responses", tokenizer, questions, template, max_tokens, multiple)
    counts = {len(of_one) for of_one in responses}
    if len(responses) != len(questions) or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"encode_responses: {len(questions)} questions and {len(responses)} lists of "
            f"{sorted(counts)} responses; a list for each question is needed, all of one length"
        )
    n_responses = counts.pop()
    names = [f"{q.id}, response {j}" for q in questions for j in range(n_responses)]
    flat = [response for of_one in responses for response in of_one]
    tails = _responses(tokenizer, flat, names, template, end_of_turn)
    of_question = _prompts(tokenizer, questions, template, system)
    heads = [head for head in of_question for _ in range(n_responses)]
    _check_lengths("encode_responses", heads, tails, names, max_tokens)
    return _sequences(heads, tails, max_tokens, multiple, pad)


def prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    template: ChatTemplate,
    system: str | None = SYSTEM,
    max_tokens: int,
    multiple: int = 8,
    pad: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts without answers, to generate from; the arguments are those of `encode`.

    Returns:
        tokens: int32 [N, T], padded on the left, so that all prompts end at T - 1.
        mask: bool [N, T], False at padding.

    Raises:
        ValueError: as in `encode`.
    """
    _check("prompts", tokenizer, questions, template, max_tokens, multiple)
    heads = _prompts(tokenizer, questions, template, system)
    names = [question.id for question in questions]
    _check_lengths("prompts", heads, [[]] * len(heads), names, max_tokens)
    width = min(round_up(max(map(len, heads)), multiple), max_tokens)
    tokens = np.full((len(heads), width), pad, np.int32)
    for row, head in zip(tokens, heads, strict=True):
        row[width - len(head) :] = head
    lengths = np.array(list(map(len, heads)))
    return tokens, np.arange(width) >= width - lengths[:, None]


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is n or more."""
    return -(-n // multiple) * multiple


def _check(
    what: str,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    template: ChatTemplate,
    max_tokens: int,
    multiple: int,
) -> None:
    if not len(questions):
        raise ValueError(f"{what}: there are no questions; at least one is needed")
    for name, value in (("max_tokens", max_tokens), ("multiple", multiple)):
        checks.at_least(f"{what}: {name}", value, 1)
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ValueError(
            f"{what}: the tokenizer pads or truncates, which would hide where a response ends; "
            "call its no_padding() and no_truncation()"
        )
    unknown = [token for token in template.special if tokenizer.token_to_id(token) is None]
    if unknown:
        raise ValueError(
            f"{what}: the chat format {template.name} uses {' '.join(unknown)}, which the "
            "tokenizer does not know; template_of finds the format of a model"
        )


def _tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    # No special tokens are added: those that the format wants are in its text.
    distinct = list(dict.fromkeys(texts))
    encoded = tokenizer.encode_batch(distinct, add_special_tokens=False)
    ids = {text: encoding.ids for text, encoding in zip(distinct, encoded, strict=True)}
    return [ids[text] for text in texts]


def _prompts(
    tokenizer: Tokenizer, questions: Sequence[Question], template: ChatTemplate, system: str | None
) -> list[Ids]:
    texts = [_named(q.id, template.prompt, q.question, system) for q in questions]
    return _tokenise(tokenizer, texts)


def _responses(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    names: Sequence[str],
    template: ChatTemplate,
    end_of_turn: bool,
) -> list[Ids]:
    contents = [
        _named(name, template.content, text) for name, text in zip(names, texts, strict=True)
    ]
    tokens = _tokenise(tokenizer, contents)
    for name, text, ids in zip(names, texts, tokens, strict=True):
        if not text.strip() or not ids:
            raise ValueError(f"{name}: the response {text!r} is empty; it needs at least one token")
    end = _tokenise(tokenizer, [template.end_of_turn])[0] if end_of_turn else []
    return [ids + end for ids in tokens]


def _named(name: str, write: Callable[..., str], *texts: str | None) -> str:
    try:
        return write(*texts)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_lengths(
    what: str, heads: list[Ids], tails: list[Ids], names: list[str], most: int, remedy: str = ""
) -> None:
    lengths = [len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)]
    over = [i for i, length in enumerate(lengths) if length > most]
    if over:
        first = over[0]
        others = f" (and {len(over) - 1} others are too long)" if len(over) > 1 else ""
        raise ValueError(
            f"{what}: {names[first]} has {lengths[first]} tokens, {len(heads[first])} of prompt "
            f"and {len(tails[first])} of response{others}; max_tokens is {most}, the longest "
            f"has {max(lengths)}: raise it, shorten the text{remedy}"
        )


def _sequences(
    heads: list[Ids], tails: list[Ids], max_tokens: int, multiple: int, pad: int
) -> Sequences:
    longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    n, width = len(heads), min(round_up(longest, multiple), max_tokens)
    n_labels = round_up(max(map(len, tails)), multiple)
    tokens = np.full((n, width), pad, np.int32)
    where = np.zeros((n, n_labels), np.int32)
    labels = np.full((n, n_labels), -1, np.int32)
    for i, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        tokens[i, : len(head) + len(tail)] = head + tail
        where[i, : len(tail)] = np.arange(len(head) - 1, len(head) + len(tail) - 1)
        labels[i, : len(tail)] = tail
    return Sequences(tokens, where, labels)
