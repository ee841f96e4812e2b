"""Chat templates: the Jinja text that comes with a language model, rendered as transformers does.

A template is foreign code, and runs in jinja2's sandbox: it reaches nothing but its arguments.
"""

import datetime
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxunlearn.core.extras import MissingPackageError

_NONE: Mapping[str, str] = MappingProxyType({})
_ANSWER = "QJXANSWERXJQ"  # no template writes it by itself


class Jinja(str):
    """The chat template of a model, with the special tokens of its tokenizer.

    Attributes:
        special_tokens: texts that the template may write by their names, e.g. `eos_token`.
    """

    special_tokens: Mapping[str, str]

    def __new__(cls, template: str, special_tokens: Mapping[str, str] = _NONE):
        """A template with its special tokens by name."""
        made = super().__new__(cls, template)
        made.special_tokens = MappingProxyType(dict(special_tokens))
        return made


def variables(template: str) -> set[str]:
    """What a template reads of its arguments; one of a chat reads `messages`.

    Raises:
        ValueError: it is not Jinja.
    """
    jinja2 = _package()
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(template))
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template {template[:80]!r}.. is not Jinja: {error}") from error


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str] = _NONE,
    *,
    prompt: bool = False,
) -> str:
    """The text of a conversation.

    Args:
        template: Jinja with what transformers adds to it. `strftime_now` is the time of the call,
            or that of the environment variable `SOURCE_DATE_EPOCH`, in seconds.
        messages: the turns, `{"role": .., "content": ..}` each.
        special_tokens: texts by their names, e.g. `bos_token`.
        prompt: whether the header of an answer follows (`add_generation_prompt`).

    Raises:
        ValueError: the template refuses the conversation, or fails at it.
    """
    options = {"tools": None, "documents": None, "add_generation_prompt": prompt}
    turns = [dict(message) for message in messages]
    _environment()
    try:
        return _compiled(str(template)).render(messages=turns, **options, **special_tokens)
    except Exception as error:  # foreign code: a template can raise whatever Python can
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"the chat template {template[:80]!r}.. fails ({said})") from error


def after_answer(template: str, special_tokens: Mapping[str, str]) -> str:
    """What a template writes after the answer that ends a conversation.

    Raises:
        ValueError: the template fails, or does not write the answer.
    """
    asked = {"role": "user", "content": "Q"}
    whole = render(template, [asked, {"role": "assistant", "content": _ANSWER}], special_tokens)
    if _ANSWER not in whole:
        raise ValueError(f"the chat template {template[:80]!r}.. does not write the answer")
    return whole.rpartition(_ANSWER)[2]


def first_token(text: str, tokens: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of some tokens stands in a text, and which it is; None without any.

    >>> first_token("yes</s> <s>", ["<s>", "</s>"])
    (3, '</s>')
    """
    found = pattern_of(tokens).search(text)
    return None if found is None else (found.start(), found.group())


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of some tokens, of those that begin alike the longest; none that are blank."""
    whole = sorted((token for token in set(tokens) if token.strip()), key=lambda it: (-len(it), it))
    return _any_of(tuple(whole))


@functools.lru_cache(maxsize=16)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@functools.cache
def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    jinja2 = _package()

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what a model says; the text is the same without the mark."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes what HTML would read.
    options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise _package().TemplateError(message)


def _strftime_now(form: str) -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.datetime.now().strftime(form)
    return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).strftime(form)


def _package() -> Any:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.meta
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise MissingPackageError("a chat template", "jinja2") from error
    return jinja2
