"""Packages that only some files and metrics need, and that are installed as an extra; no JAX."""


class MissingPackageError(ImportError):
    """A package of an extra is not installed; says how to install it.

    >>> print(MissingPackageError("a .gguf file", "gguf"))
    a .gguf file needs the package gguf; in the folder of this repository: pip install -e ".[llm]"
    """

    def __init__(self, what: str, package: str, extra: str = "llm"):
        """Takes what needs the package, its name, and the extra that it comes with."""
        super().__init__(
            f"{what} needs the package {package}; in the folder of this repository: "
            f'pip install -e ".[{extra}]"'
        )
