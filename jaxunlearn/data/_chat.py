"""How questions and answers are written for a model: by its own template, or as plain text."""

import dataclasses
from typing import Any, Protocol

from jaxunlearn.core import chat

SYSTEM = "You are a helpful assistant."


class Writer(Protocol):
    """Writes conversations of one question as text.

    Attributes:
        end_of_turn: what ends an answer and is learned with it.
        begins: whether the tokens that a tokenizer puts before every text come first.
        joins: whether prompt and answer are tokenised as one text, as transformers does.
    """

    @property
    def end_of_turn(self) -> str:
        """See above."""
        ...

    @property
    def begins(self) -> bool:
        """See above."""
        ...

    @property
    def joins(self) -> bool:
        """See above."""
        ...

    def prompt(self, question: str, system: str | None) -> str:
        """The text from which the model answers."""
        ...

    def answered(self, question: str, answer: str, system: str | None) -> tuple[str, str]:
        """The text before an answer, and the answer without its end of turn."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How one question and its answer are written for a model.

    The text is `start + system + user + assistant`, the prompt, then the answer and `end_of_turn`,
    which are learned. `{}` in a field is replaced by the content. Prompt and response are tokenised
    apart, so that no token spans the two.

    Attributes:
        name: what the format is called.
        start: the first token of the text, and whatever precedes the system prompt.
        system: the turn of the system.
        user: the turn of the user.
        assistant: the header of the answer.
        end_of_turn: the token that ends the answer; a model stops after it.
        special: tokens that the format uses. A tokenizer must know them; contents must not have
            them, because they would be read as the end of a turn.
        strip: whether white space around the contents is taken off.
        begins: whether the text begins with what a tokenizer puts before every text, such as the
            first token of Llama; otherwise with `start` alone.
    """

    name: str
    start: str = ""
    system: str
    user: str
    assistant: str
    end_of_turn: str
    special: tuple[str, ...] = ()
    strip: bool = False
    begins: bool = False
    joins = False

    def writer(self, tokenizer: Any) -> Writer:
        """The format for a tokenizer.

        Raises:
            ValueError: a token of the format is none of the tokenizer's.
        """
        unknown = [token for token in self.special if tokenizer.token_to_id(token) is None]
        if unknown:
            raise ValueError(
                f"the chat format {self.name} uses {' '.join(unknown)}, which the tokenizer does "
                "not know; template_of finds the format of a model"
            )
        return self

    def content(self, text: str) -> str:
        """A question, answer or system prompt as it enters the text.

        Raises:
            ValueError: it has a special token of the format.
        """
        for token in self.special:
            if token in text:
                raise ValueError(
                    f"the text {text[:80]!r} has {token}, a token of the chat format {self.name}; "
                    "take it out"
                )
        return text.strip() if self.strip else text

    def prompt(self, question: str, system: str | None = SYSTEM) -> str:
        """The text before the answer; without a turn of the system if `system` is None or empty."""
        before = self.system.format(self.content(system)) if system else ""
        return f"{self.start}{before}{self.user.format(self.content(question))}{self.assistant}"

    def answered(self, question: str, answer: str, system: str | None) -> tuple[str, str]:
        """The text before an answer, and the answer without its end of turn."""
        return self.prompt(question, system), self.content(answer)


_CHATML = ChatTemplate(
    name="chatml",
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>"),
)
_LLAMA3 = ChatTemplate(
    name="llama3",
    start="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end_of_turn="<|eot_id|>",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    strip=True,
)
# The space after [/INST] is not written: the tokenizer of Llama 2 puts one before every piece.
_LLAMA2 = ChatTemplate(
    name="llama2",
    start="<s>[INST] ",
    system="<<SYS>>\n{}\n<</SYS>>\n\n",
    user="{} [/INST]",
    assistant="",
    end_of_turn="</s>",
    special=("<s>", "</s>"),
    strip=True,
)
_PLAIN = ChatTemplate(
    name="plain",
    system="{}\n\n",
    user="Question: {}\n",
    assistant="Answer:\n",
    end_of_turn="\n\n",
    strip=True,
    begins=True,
)
TEMPLATES = {template.name: template for template in (_CHATML, _LLAMA3, _LLAMA2, _PLAIN)}
_MARKERS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "llama2": ("[INST]", "<<SYS>>"),  # Mistral has [INST] but no such turn of the system
}


@dataclasses.dataclass(frozen=True)
class JinjaTemplate:
    """The chat format of a model as its own Jinja template writes it, just as in transformers.

    The prompt is what the template writes of the question with the header of an answer; the answer
    is what it adds when the answer follows, up to the first token of the tokenizer's that ends it.
    Special tokens that the template writes by name are those of the tokenizer. All is tokenised as
    one text, with no other special tokens than the template writes.

    Attributes:
        jinja: the template; a `core.chat.Jinja` knows its special tokens by itself.
    """

    jinja: str

    def writer(self, tokenizer: Any) -> Writer:
        """The format for a tokenizer.

        Raises:
            ValueError: the template fails, does not write the question or the answer, or writes a
                special token whose text is not known.
        """
        return _Dialogue(self.jinja, tokenizer)


class _Dialogue:
    """See `JinjaTemplate`."""

    begins, joins = False, True

    def __init__(self, jinja: str, tokenizer: Any):
        added = tokenizer.get_added_tokens_decoder().values()
        self._jinja, self._tokens = jinja, _special_tokens(jinja, tokenizer)
        self._special = chat.pattern_of([])  # until it is known which tokens the format writes
        self._after = chat.after_answer(jinja, self._tokens)
        found = chat.first_token(self._after, (token.content for token in added))
        if found is not None:
            self.end_of_turn = self._after[: found[0]] + found[1]
        else:  # a template that leaves the end to the tokenizer
            self.end_of_turn = self._tokens.get("eos_token") or self._after
        self._takes_system = self._writes_system()
        prompt = self.prompt(_PROBE, None)
        if _PROBE not in prompt:
            raise ValueError(f"the chat template {jinja[:80]!r}.. does not write the question")
        own = prompt + self.end_of_turn  # tokens of the format, be they special or not
        self._special = chat.pattern_of(
            token.content for token in added if token.special or token.content in own
        )

    def prompt(self, question: str, system: str | None) -> str:
        return self._text(self._asked(question, system), prompt=True)

    def answered(self, question: str, answer: str, system: str | None) -> tuple[str, str]:
        asked, prompt = self._asked(question, system), self.prompt(question, system)
        whole = self._text([*asked, self._turn("assistant", answer)])
        if not whole.startswith(prompt):
            # The header of a new answer is more than that of one that was given (a thought that is
            # begun, for instance): what stands before the answer is found by another answer.
            prompt = self._text([*asked, self._turn("assistant", _PROBE)]).rpartition(_PROBE)[0]
        if not whole.startswith(prompt) or not whole.endswith(self._after):
            raise ValueError(f"the chat template {self._jinja[:80]!r}.. changes around {answer!r}")
        return prompt, whole[len(prompt) : len(whole) - len(self._after)]

    def _asked(self, question: str, system: str | None) -> list[dict[str, str]]:
        if system and not self._takes_system:
            if system != SYSTEM:
                raise ValueError(
                    f"the chat template {self._jinja[:80]!r}.. has no turn of the system, but "
                    f"system is {system!r}; pass None"
                )
            system = None
        before = [self._turn("system", system)] if system else []
        return [*before, self._turn("user", question)]

    def _turn(self, role: str, text: str) -> dict[str, str]:
        if found := self._special.search(text):
            raise ValueError(
                f"the text {text[:80]!r} has {found.group()}, a token of the chat format; take it "
                "out"
            )
        return {"role": role, "content": text}

    def _text(self, messages: list[dict[str, str]], prompt: bool = False) -> str:
        return chat.render(self._jinja, messages, self._tokens, prompt=prompt)

    def _writes_system(self) -> bool:
        turns = [self._turn("system", _PROBE), self._turn("user", "Q")]
        try:
            return _PROBE in self._text(turns, prompt=True)
        except ValueError:
            return False


_PROBE = "QJXPROBEXJQ"  # no template writes it by itself


def _special_tokens(jinja: str, tokenizer: Any) -> dict[str, str]:
    """Texts of the special tokens that a template may write, by name."""
    first = [tokenizer.id_to_token(token) for token in first_tokens(tokenizer)]
    known = {"bos_token": first[0]} if first else {}
    if isinstance(jinja, chat.Jinja):
        return known | dict(jinja.special_tokens)
    asked = {name for name in chat.variables(jinja) if name.endswith("_token")}
    if missing := sorted(asked - known.keys()):
        raise ValueError(
            f"the chat template {jinja[:80]!r}.. writes {missing[0]}, which a text alone does not "
            "tell; take the template from decoder.from_pretrained, or make it a core.chat.Jinja"
        )
    return known


def first_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before every text."""
    encoding = tokenizer.encode("a")
    n = next((i for i, added in enumerate(encoding.special_tokens_mask) if not added), 0)
    return encoding.ids[:n]


def template_of(jinja: str | None) -> ChatTemplate | JinjaTemplate:
    """The chat format of a model, from the Jinja template that comes with it.

    Args:
        jinja: the template, e.g. `Pretrained.chat_template`; None for a model without one.

    Returns:
        The template itself, which is rendered. For a base model without one `TEMPLATES["plain"]`,
        which begins as the tokenizer begins every text. For a text that reads no messages, and so
        can only name the tokens of a format, that format: "chatml", "llama3" or "llama2".

    Raises:
        ValueError: it is not Jinja, or names no format that is known.
        MissingPackageError: the package `jinja2` is missing.
    """
    if jinja is None:
        return TEMPLATES["plain"]
    if "messages" in chat.variables(jinja):
        return JinjaTemplate(jinja)
    for name, markers in _MARKERS.items():
        if all(marker in jinja for marker in markers) and "<|im_sep|>" not in jinja:  # Phi-4
            return TEMPLATES[name]
    known = ", ".join(f"{name} ({' '.join(tokens)})" for name, tokens in _MARKERS.items())
    raise ValueError(
        f"the chat template {jinja[:80]!r}.. reads no messages and is of no known format; known "
        f"are {known}; write it as a ChatTemplate, or use TEMPLATES['plain']"
    )
