"""Where the tensors of a file lie."""

from collections.abc import Mapping
from pathlib import Path


def check_apart(file: Path, spans: Mapping[str, tuple[int, int]]) -> None:
    """Raises a ValueError if tensors share bytes: a small file could hold any number of those.

    The spans are the first byte of each tensor, and the one after its last, by name.
    """
    before, furthest = "", 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < end:
            if begin < furthest:
                raise ValueError(f"{file}: tensors {before!r} and {name!r} lie over each other")
            before, furthest = name, end
