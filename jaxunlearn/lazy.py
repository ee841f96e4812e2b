"""Packages whose modules load on first use."""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def exports(
    package: str, modules: Iterable[str], names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Such a package has no `__all__` of its own: asked for it, as `import *` and builders of
    documentation do, it loads all of its public names and lists them.

    Args:
        package: its `__name__`.
        modules: its public modules.
        names: its other public names, and the module that each of them is in.
    """
    modules, names = tuple(modules), dict(names or {})
    public = sorted({*modules, *names})

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if name == "__all__":
            for one in public:
                setattr(sys.modules[package], one, get(one))
            return public
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: public
