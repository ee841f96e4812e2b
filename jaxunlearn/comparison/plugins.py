"""A method of the user's own, from a Python file: one function, and one dataclass of settings."""

import dataclasses
import inspect
import os
import typing
from collections.abc import Callable
from typing import Any

from jaxunlearn.core import user_code
from jaxunlearn.unlearn.method_settings import DEFAULTS, NoSettings

_GIVEN = ("model", "params", "stats", "problem", "key")  # what every method is called with
_FORM = f"{', '.join(_GIVEN)}, *, ..."


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A method from a file.

    Attributes:
        name: name of the method, which is that of the function.
        file: name of the file.
        sha256: digest of the file.
        function: `function(model, params, stats, problem, key, **settings) -> Unlearned`.
        settings: default settings, an instance of a frozen dataclass.
    """

    name: str
    file: str
    sha256: str
    function: Callable[..., Any]
    settings: Any

    @property
    def origin(self) -> dict[str, str]:
        """Where the method comes from, JSON-like, as records have it."""
        return {"file": self.file, "sha256": self.sha256}


def load(path: str | os.PathLike) -> Plugin:
    """Runs a Python file and takes the method that it defines.

    Its public functions whose first parameters are `model, params, stats, problem, key` count, and
    its public dataclasses; the parameters after these five are the fields of the dataclass, which
    has a default for each. A function without further parameters needs no dataclass. What the file
    imports is not part of the digest.

    Raises:
        ValueError: the file cannot be read or run, or does not hold just that; the message names
            the file, and the line where there is one.
    """
    what = f"plugin {str(path)!r}"
    file = user_code.run(path, what)
    mine = file.mine
    name, function = _method(mine, what)
    return Plugin(name, file.name, file.sha256, function, _settings(mine, name, function, what))


def _method(mine: dict[str, Any], what: str) -> tuple[str, Callable[..., Any]]:
    methods = {
        name: value
        for name, value in mine.items()
        if inspect.isfunction(value) and tuple(inspect.signature(value).parameters)[:5] == _GIVEN
    }
    if len(methods) != 1:
        found = ", ".join(methods) or "none"
        raise ValueError(f"{what} needs one function ({_FORM}) of a public name; it has {found}")
    ((name, function),) = methods.items()
    if name in DEFAULTS:
        raise ValueError(
            f"{what} defines {name!r}, which is a method already; give it another name"
        )
    return name, function


def _settings(mine: dict[str, Any], name: str, function: Callable[..., Any], what: str) -> Any:
    kinds = inspect.Parameter
    parameters = list(inspect.signature(function).parameters.values())[5:]
    if any(one.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for one in parameters):
        raise ValueError(f"{what}: {name} takes *args or **kwargs; name its settings one by one")
    wanted = [one.name for one in parameters]
    classes = [value for value in mine.values() if isinstance(value, type)]
    classes = [value for value in classes if dataclasses.is_dataclass(value)]
    if not classes and not wanted:
        return NoSettings()
    if len(classes) != 1:
        found = ", ".join(value.__name__ for value in classes) or "none"
        raise ValueError(
            f"{what} needs one dataclass with the settings of {name}, {', '.join(wanted)}; it has "
            f"{found}"
        )
    (settings,) = classes
    fields = {field.name: field for field in dataclasses.fields(settings)}
    if set(fields) != set(wanted):
        raise ValueError(
            f"{what}: {settings.__name__} has the fields {', '.join(fields) or 'none'}; {name} "
            f"takes the settings {', '.join(wanted) or 'none'}"
        )
    for field in fields.values():
        if field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{what}: {settings.__name__}.{field.name} has no default")
    if not getattr(settings, "__dataclass_params__").frozen:  # noqa: B009
        raise ValueError(f"{what}: {settings.__name__} must be frozen, @dataclass(frozen=True)")
    try:
        typing.get_type_hints(settings)
        made = settings()
        hash(made)
    except Exception as error:  # whatever it does
        raise ValueError(f"{what}: {settings.__name__} cannot be used: {error}") from error
    return made
