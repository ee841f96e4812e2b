"""Methods and a network of the user's own, from a Python file."""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxunlearn.core import user_code
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.methods import METHODS


class Plugin(NamedTuple):
    """What a file brings.

    Attributes:
        methods: methods by name.
        network: `network(image, n_classes) -> Model`, or None.
        origin: name and digest of the file, JSON-like.
    """

    methods: dict[str, type[Method]]
    network: Callable[[tuple[int, ...], int], Any] | None
    origin: dict[str, str]


def load(path: str | os.PathLike) -> Plugin:
    """Runs a Python file and takes what it defines.

    Each public frozen dataclass that extends `tta.method.Method` is a method, whose name is that of
    the class in lower case (`MyTent`: "my_tent"); a function `network(image, n_classes)` makes the
    network, a `core.model.Model` such as `from_nnx` gives, for images [H, W, C] in [0, 1].

    Raises:
        ValueError: the file cannot be read or run, or defines neither, or what cannot be used; it
            is named, and the line where there is one.
    """
    what = f"plugin {str(path)!r}"
    file = user_code.run(path, what)
    methods: dict[str, type[Method]] = {}
    for name, value in file.mine.items():
        if isinstance(value, type) and issubclass(value, Method):
            methods[_checked_name(name, value, what)] = value
    network = file.mine.get("network")
    if not methods and network is None:
        raise ValueError(
            f"{what} defines no method (a frozen dataclass that extends tta.method.Method) and no "
            "function network(image, n_classes)"
        )
    if network is not None and not callable(network):
        raise ValueError(f"{what}: network is {network!r}; a function (image, n_classes) is needed")
    return Plugin(methods, network, file.origin)


def _checked_name(name: str, kind: type[Method], what: str) -> str:
    params = getattr(kind, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(kind) or params is None or not params.frozen:
        raise ValueError(f"{what}: {name} must be a frozen dataclass, @dataclass(frozen=True)")
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{what}: {name}.{field.name} has no default")
    lower = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if lower in METHODS:
        raise ValueError(f"{what} defines {lower!r}, which is a method already; rename the class")
    return lower
