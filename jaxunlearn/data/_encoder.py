"""One way to write questions for one network."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn.data._chat import template_of
from jaxunlearn.data._packing import PromptTree, tree
from jaxunlearn.data._questions import Question
from jaxunlearn.data._sequences import Sequences, encode, encode_responses, prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Writes questions as token arrays for one network.

    Attributes:
        tokenizer: the network's, see `decoder.from_pretrained`; None is an error.
        chat_template: the Jinja template that comes with it, None for plain text.
        vocabulary: tokens that the network knows.
        context: the most tokens that it reads.
        max_tokens: the most tokens of a text, 1 to `context`.
        overlong: what happens to a question with its answer that has more, "error" or "drop".

    Raises:
        ValueError: no tokenizer, a template that cannot be used, or `max_tokens` out of range.
    """

    tokenizer: "Tokenizer | None"
    chat_template: str | None
    vocabulary: int
    context: int
    max_tokens: int
    overlong: str = "error"

    def __post_init__(self):
        if not 1 <= self.max_tokens <= self.context:
            raise ValueError(
                f"max_tokens is {self.max_tokens}; 1 to {self.context} (context) allowed"
            )
        if self.tokenizer is None:
            raise ValueError("the model comes without a tokenizer (tokenizer.json); one is needed")
        template_of(self.chat_template).writer(self.tokenizer)  # fails here rather than later

    @property
    def _options(self) -> dict[str, Any]:
        limits = {"max_tokens": self.max_tokens, "vocabulary": self.vocabulary}
        return {"template": template_of(self.chat_template)} | limits

    def sequences(self, questions: list[Question]) -> Sequences:
        """Questions with their answers.

        Raises:
            ValueError: a text that is too long, or a token that the network does not know.
        """
        return encode(self.tokenizer, questions, **self._options, overlong=self.overlong)

    def responses(self, questions: list[Question], texts: tuple[str, ...]) -> PromptTree:
        """Every question with each of the same responses, in one row.

        Raises:
            ValueError: as `sequences`.
        """
        each = [texts] * len(questions)
        rows = encode_responses(self.tokenizer, questions, each, **self._options, end_of_turn=False)
        return tree(rows, len(texts))

    def prompts(self, questions: list[Question]) -> tuple[np.ndarray, np.ndarray]:
        """Questions to be answered.

        Raises:
            ValueError: as `sequences`.
        """
        return prompts(self.tokenizer, questions, **self._options)
