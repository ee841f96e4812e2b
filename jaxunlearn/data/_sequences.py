"""Questions and answers as token arrays that say which tokens are learned."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.data._chat import SYSTEM, ChatTemplate, JinjaTemplate, Writer, first_tokens
from jaxunlearn.data._questions import Question

Tokenizer: TypeAlias = Any  # a `tokenizers.Tokenizer`, only received here
Template: TypeAlias = ChatTemplate | JinjaTemplate
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
    template: Template,
    system: str | None = SYSTEM,
    max_tokens: int,
    overlong: str = "error",
    multiple: int = 8,
    pad: int = 0,
    vocabulary: int | None = None,
) -> Sequences:
    """Questions with their answers, to train on.

    Learned are the tokens of the answer and the end of turn, nothing else. What the format puts
    after them is left out: in a causal model it can change no prediction of theirs.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that neither pads nor truncates.
        questions: N of them.
        template: the chat format (`template_of`).
        system: the system prompt; None or "" for none. The default one is left out where the
            template of a model takes none.
        max_tokens: the most tokens that prompt and response may have, e.g. the model's context.
        overlong: "error", or "drop" to leave out the questions that have more.
        multiple: T and R are rounded up to multiples of it (T to `max_tokens` at most), so that
            few different programs are compiled.
        pad: the token that fills up, any of the model's; nothing depends on it.
        vocabulary: tokens that the network knows; None leaves that unchecked.

    Returns:
        NumPy arrays; N rows in the order of the questions, fewer if some are dropped.

    Raises:
        ValueError: a response without tokens, a token that the network does not know or, unless
            dropped, a text that is too long, naming its `id`; a tokenizer that pads, truncates, or
            lacks the tokens of the format; no questions, or none left.
    """
    if overlong not in ("error", "drop"):
        raise ValueError(f"overlong is {overlong!r}; error and drop are allowed")
    writer = _writer("encode", tokenizer, questions, template, max_tokens, multiple)
    names = [question.id for question in questions]
    pairs = [(question.question, question.answer) for question in questions]
    heads, tails = _answered(tokenizer, writer, pairs, names, system, end_of_turn=True)
    _check_vocabulary(tokenizer, heads, tails, names, vocabulary)
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
    template: Template,
    system: str | None = SYSTEM,
    max_tokens: int,
    end_of_turn: bool = True,
    multiple: int = 8,
    pad: int = 0,
    vocabulary: int | None = None,
) -> Sequences:
    """Several responses to each question, to evaluate: true and false answers, refusals.

    Of the N questions with J responses each, response j to question n is row n J + j of the result.
    The questions' own answers are not used. `end_of_turn` says whether the end of turn belongs to a
    response: the probability that an answer begins with a phrase needs False. All else is as in
    `encode`.

    Raises:
        ValueError: as in `encode`, or unequal numbers of responses.
    """
    writer = _writer("encode_responses", tokenizer, questions, template, max_tokens, multiple)
    counts = {len(of_one) for of_one in responses}
    if len(responses) != len(questions) or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"encode_responses: {len(questions)} questions and {len(responses)} lists of "
            f"{sorted(counts)} responses; a list for each question is needed, all of one length"
        )
    n_responses = counts.pop()
    names = [f"{q.id}, response {j}" for q in questions for j in range(n_responses)]
    pairs = [
        (question.question, response)
        for question, of_one in zip(questions, responses, strict=True)
        for response in of_one
    ]
    heads, tails = _answered(tokenizer, writer, pairs, names, system, end_of_turn)
    _check_vocabulary(tokenizer, heads, tails, names, vocabulary)
    _check_lengths("encode_responses", heads, tails, names, max_tokens)
    return _sequences(heads, tails, max_tokens, multiple, pad)


def prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    template: Template,
    system: str | None = SYSTEM,
    max_tokens: int,
    multiple: int = 8,
    pad: int = 0,
    vocabulary: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts without answers, to generate from; the arguments are those of `encode`.

    Returns:
        tokens: int32 [N, T], padded on the left, so that all prompts end at T - 1.
        mask: bool [N, T], False at padding.

    Raises:
        ValueError: as in `encode`.
    """
    writer = _writer("prompts", tokenizer, questions, template, max_tokens, multiple)
    names = [question.id for question in questions]
    texts = [_named(q.id, writer.prompt, q.question, system) for q in questions]
    heads = _heads(tokenizer, writer, texts)
    nothing: list[Ids] = [[]] * len(heads)
    _check_vocabulary(tokenizer, heads, nothing, names, vocabulary)
    _check_lengths("prompts", heads, nothing, names, max_tokens)
    width = min(round_up(max(map(len, heads)), multiple), max_tokens)
    tokens = np.full((len(heads), width), pad, np.int32)
    for row, head in zip(tokens, heads, strict=True):
        row[width - len(head) :] = head
    lengths = np.array(list(map(len, heads)))
    return tokens, np.arange(width) >= width - lengths[:, None]


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is n or more."""
    return -(-n // multiple) * multiple


def _writer(
    what: str,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    template: Template,
    max_tokens: int,
    multiple: int,
) -> Writer:
    """The template for this tokenizer, after a look at the other arguments."""
    if not len(questions):
        raise ValueError(f"{what}: there are no questions; at least one is needed")
    for name, value in (("max_tokens", max_tokens), ("multiple", multiple)):
        checks.at_least(f"{what}: {name}", value, 1)
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ValueError(
            f"{what}: the tokenizer pads or truncates, which would hide where a response ends; "
            "call its no_padding() and no_truncation()"
        )
    return _named(what, template.writer, tokenizer)


def _tokenise(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Ids]:
    # No special tokens are added: those that the format wants are in its text.
    texts = list(texts)
    distinct = list(dict.fromkeys(texts))
    encoded = tokenizer.encode_batch(distinct, add_special_tokens=False)
    ids = {text: encoding.ids for text, encoding in zip(distinct, encoded, strict=True)}
    return [ids[text] for text in texts]


def _heads(tokenizer: Tokenizer, writer: Writer, texts: Sequence[str]) -> list[Ids]:
    first = first_tokens(tokenizer) if writer.begins else []
    return [first + ids for ids in _tokenise(tokenizer, texts)]


def _answered(
    tokenizer: Tokenizer,
    writer: Writer,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    system: str | None,
    end_of_turn: bool,
) -> tuple[list[Ids], list[Ids]]:
    """Tokens of the prompts, and those of the answers."""
    for name, (_, answer) in zip(names, pairs, strict=True):
        if not answer.strip():
            raise ValueError(
                f"{name}: the response {answer!r} is empty; it needs at least one token"
            )
    written = [
        _named(name, writer.answered, *pair, system)
        for name, pair in zip(names, pairs, strict=True)
    ]
    heads = _heads(tokenizer, writer, [head for head, _ in written])
    tails = _tokenise(tokenizer, (tail for _, tail in written))
    for name, (_, answer), ids in zip(names, pairs, tails, strict=True):
        if not ids:
            raise ValueError(
                f"{name}: the response {answer!r} is empty; it needs at least one token"
            )
    end = writer.end_of_turn if end_of_turn else ""
    ending = _tokenise(tokenizer, [end])[0]
    apart = [ids + ending for ids in tails]
    if not writer.joins:
        return heads, apart
    # A text is tokenised as a whole, unless a token would span prompt and answer.
    whole = _tokenise(tokenizer, (head + tail + end for head, tail in written))
    tails = [
        ids[len(head) :] if ids[: len(head)] == head and len(ids) > len(head) else alone
        for ids, head, alone in zip(whole, heads, apart, strict=True)
    ]
    return heads, tails


def _check_vocabulary(
    tokenizer: Tokenizer,
    heads: list[Ids],
    tails: list[Ids],
    names: Sequence[str],
    vocabulary: int | None,
) -> None:
    for name, head, tail in zip(names, heads, tails, strict=True):
        if vocabulary is not None and (most := max(head + tail, default=-1)) >= vocabulary:
            raise ValueError(
                f"{name}: the tokenizer gives the token {most}; the network knows 0 to "
                f"{vocabulary - 1} (it is {tokenizer.id_to_token(most)!r})"
            )


def _named(name: str, write: Callable[..., Any], *given: Any) -> Any:
    try:
        return write(*given)
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
