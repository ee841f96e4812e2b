"""Settings against their declarations: what is of another type is named before anything begins."""

import dataclasses
import operator
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.core import checks

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}


def check(name: str, settings: Any, kind: type, inner: str = "") -> None:
    """Whether a dataclass of settings is one, and each field of the type it is declared with.

    Args:
        name: name of the argument.
        settings: an instance of `kind`, whose fields may be dataclasses in turn.
        kind: the dataclass.
        inner: what names of its fields begin with, `recipe.` of a field `recipe`.

    Raises:
        ValueError: another object, or a field of another type; a bool is no number, a whole number
            is a float as well, and any sequence will do for a tuple.
    """
    if not isinstance(settings, kind):
        raise ValueError(f"{name} is {settings!r:.80}; an instance of {kind.__name__} is needed")
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            check(inner + field.name, value, hint, f"{inner}{field.name}.")
        elif typing.get_origin(hint) is typing.Literal:
            checks.one_of(inner + field.name, value, typing.get_args(hint))
        elif not _fits(value, hint):
            wanted = _WORDS.get(hint, str(hint).replace("typing.", ""))
            raise ValueError(f"{inner}{field.name} is {value!r}; {wanted} is needed")


def _fits(value: Any, hint: Any) -> bool:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in of)
    if origin is typing.Literal:  # inside of others its values are checked where they are explained
        return any(type(value) is type(one) for one in of)
    if origin in (tuple, Sequence):
        items = of[:1] * len(value) if _is_list(value) and of[1:] in ((), (...,)) else of
        return _is_list(value) and len(items) == len(value) and all(map(_fits, value, items))
    if hint is float:
        return not isinstance(value, bool) and hasattr(value, "__float__") and _is_scalar(value)
    if hint is int:
        return not isinstance(value, bool) and _is_whole(value)
    if hint is Path:
        return isinstance(value, str | os.PathLike)
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_scalar(value: Any) -> bool:
    return getattr(value, "shape", ()) == ()


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
