"""Packages whose modules load on first use."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def exports(
    package: str, modules: Iterable[str], names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        modules: its public modules.
        names: its other public names, and the module that each of them is in.
    """
    modules, names = tuple(modules), dict(names or {})

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*modules, *names})
