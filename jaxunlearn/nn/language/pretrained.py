"""A pretrained decoder in a Hugging Face folder or a GGUF file, opened without its weights."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxunlearn.nn.files import gguf
from jaxunlearn.nn.files.configs import of_folder
from jaxunlearn.nn.language import tokenizers
from jaxunlearn.nn.language.config import Config, from_hugging_face

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Opened(NamedTuple):
    """What is known of a network before its weights are read.

    Attributes:
        path: the folder or file.
        config: sizes and switches.
        gguf: tensors by name and metadata of a GGUF file, None for a folder.
    """

    path: Path
    config: Config
    gguf: tuple[dict[str, gguf.Packed], dict[str, Any]] | None

    def tokenizer(self) -> "tuple[Tokenizer | None, str | None]":
        """Tokenizer and chat template, each None where there is none."""
        if self.gguf is None:
            return tokenizers.from_folder(self.path)
        return tokenizers.from_gguf(self.gguf[1])


def opened(path: str | os.PathLike) -> Opened:
    """Reads `config.json` of a folder, or the header of a `.gguf` file.

    Raises:
        ValueError: no model there, or an architecture that is not supported.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        config, *rest = gguf.read(path)
        return Opened(path, config, (rest[0], rest[1]))
    if path.exists() and not path.is_dir():
        raise ValueError(f"path is {str(path)!r}, which is neither a folder nor a .gguf file")
    return Opened(path, of_folder(path, from_hugging_face), None)
