"""JSON beside weights: configs of networks, read without the weights."""

import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.readers import read_object, reading

Config = TypeVar("Config")
_MOST_BYTES = 32 * 2**20  # the index of the largest models has 10 MB
_LARGEST = 1e30  # of numbers that are no sizes
TRANSFORMER = {  # our sizes, and their names in `config.json`
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: something else, or more than 32 MiB; the file is named.
    """
    return read_object(file, most=_MOST_BYTES)


def of_folder(folder: Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """What `parse` makes of the folder's `config.json`.

    Raises:
        ValueError: no such file, or a content that `parse` refuses or stumbles over.
    """
    file = folder / "config.json"
    if not file.is_file():
        other = sorted(one.name for one in folder.glob("*.gguf"))
        hint = f"; {other[0]} in it can be read by its own path" if other else ""
        state = f"a folder without config.json{hint}" if folder.is_dir() else "not there"
        raise ValueError(f"path is {str(folder)!r}, which is {state}")
    with reading(file):
        return parse(read_json(file))


def size_of(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A size: a whole number from 1 to 2^31 - 1; without a default the config must have it."""
    value = config.get(name, default)
    value = default if value is None else value
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"config: {name} is {value!r}; a whole number is needed")
    return checks.at_least(f"config: {name}", value, 1, 2**31)


def number_of(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0 and below 1e30; without a default the config must have it."""
    value = config.get(name, default)
    is_real = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not is_real or not 0 < value < _LARGEST:
        raise ValueError(f"config: {name} is {value!r}; a finite number above 0 is needed")
    return float(value)


def flag_of(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A switch."""
    value = config.get(name, default)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"config: {name} is {value!r}; true or false is needed")
    return value
