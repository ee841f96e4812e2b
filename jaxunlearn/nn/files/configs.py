"""JSON beside weights: configs of networks, read without the weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
TRANSFORMER = {  # our sizes, and their names in `config.json`
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: something else; the file is named.
    """
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: it is not a JSON object") from error


def of_folder(folder: Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """What `parse` makes of the folder's `config.json`.

    Raises:
        ValueError: no such file, or a content that `parse` refuses with a `ValueError`.
    """
    file = folder / "config.json"
    if not file.is_file():
        other = sorted(one.name for one in folder.glob("*.gguf"))
        hint = f"; {other[0]} in it can be read by its own path" if other else ""
        state = f"a folder without config.json{hint}" if folder.is_dir() else "not there"
        raise ValueError(f"path is {str(folder)!r}, which is {state}")
    record = read_json(file)
    try:
        return parse(record)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def size_of(config: Mapping[str, Any], name: str) -> int:
    """A size that a config must have."""
    if not isinstance(config.get(name), int):
        raise ValueError(f"config: {name} is {config.get(name)!r}; a whole number is needed")
    return config[name]
