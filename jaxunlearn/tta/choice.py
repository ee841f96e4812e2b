"""Methods by name, with settings given as text: `rmt.lambda_cont=0`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxunlearn.core import checks, typed
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.methods import METHODS

DEFAULTS = ("source", "bn", "tent", "rmt")


def chosen(
    names: Sequence[str],
    changes: Sequence[str] = (),
    plugins: Mapping[str, type[Method]] = MappingProxyType({}),
) -> dict[str, Method]:
    """The methods of these names, `source` among them.

    Args:
        names: names of methods.
        changes: `METHOD.SETTING=VALUE`, a value as in JSON, or a word.
        plugins: further methods by name.

    Raises:
        ValueError: an unknown method or setting, or a value that it does not take.
    """
    known = {**METHODS, **plugins}
    for name in names:
        checks.one_of("methods", name, known)
    names = list(dict.fromkeys(["source", *names, *plugins]))
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for change in changes:
        name, setting, value = _parts(change)
        if name not in settings:
            raise ValueError(f"set is {change!r}; the methods of this run are {', '.join(names)}")
        settings[name][setting] = value
    return {name: _made(name, known[name], settings[name]) for name in names}


def record(method: Method) -> dict[str, Any]:
    """Settings of a method, JSON-like; a function or an array is given by its name or shape."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "shape"):
        return f"array{list(value.shape)}"
    return getattr(value, "__name__", type(value).__name__)


def _parts(change: str) -> tuple[str, str, Any]:
    left, equals, text = change.partition("=")
    name, dot, setting = left.strip().partition(".")
    if not (equals and dot and name and setting):
        raise ValueError(f"set is {change!r}; METHOD.SETTING=VALUE is needed")
    try:
        return name, setting, json.loads(text)
    except ValueError:
        return name, setting, text


def _made(name: str, kind: Any, settings: dict[str, Any]) -> Method:
    fields = {field.name for field in dataclasses.fields(kind)}
    for setting in settings:
        if setting not in fields:
            raise ValueError(
                f"{name} has no setting {setting!r}; it has {', '.join(sorted(fields))}"
            )
    try:
        method = kind(**settings)
        typed.check(name, method, kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    return method
