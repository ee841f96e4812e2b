"""A pretrained decoder in a Hugging Face folder or a GGUF file, opened before weights are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import folder, reader
from jaxunlearn.nn.files.configs import of_folder
from jaxunlearn.nn.files.reader import Tensor
from jaxunlearn.nn.language import gguf_config, tokenizers
from jaxunlearn.nn.language.config import Config, from_hugging_face
from jaxunlearn.nn.language.tensor_names import GGUF, HUGGING_FACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Opened(NamedTuple):
    """What is known of a network before its weights are read.

    Attributes:
        path: the folder or file.
        config: sizes and switches.
        gguf: tensors by name and metadata of a GGUF file, None for a folder.
    """

    path: Path
    config: Config
    gguf: tuple[Mapping[str, Tensor], dict[str, Any]] | None

    def tokenizer(self) -> "tuple[Tokenizer | None, str | None]":
        """Tokenizer and chat template, each None where there is none."""
        if self.gguf is None:
            return tokenizers.from_folder(self.path)
        return tokenizers.from_gguf(self.gguf[1])

    def params(
        self, shapes: Tree, dtype: np.dtype, shardings: Tree | None, variant: str | None
    ) -> Tree:
        """The weights, see `reader.read` and `folder.tensors`."""
        if self.gguf is not None:
            if variant is not None:
                raise ValueError(f"variant is {variant!r}; a .gguf file has none")
            return reader.read(self.path, self.gguf[0], GGUF, shapes, dtype, shardings)
        tensors = folder.tensors(self.path, variant=variant, ignore=HUGGING_FACE.ignore)
        if self.config.tied and _HEAD in tensors and _EMBEDDING in tensors:
            _check_tied(tensors.pop(_HEAD), tensors[_EMBEDDING])
        return reader.read(self.path, tensors, HUGGING_FACE, shapes, dtype, shardings)


def opened(path: str | os.PathLike) -> Opened:
    """Reads `config.json` of a folder, or the header of a `.gguf` file.

    Raises:
        ValueError: no model there, or an architecture that is not supported.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        config, tensors, metadata = gguf_config.read(path)
        return Opened(path, config, (tensors, metadata))
    if path.exists() and not path.is_dir():
        raise ValueError(f"path is {str(path)!r}, which is neither a folder nor a .gguf file")
    return Opened(path, of_folder(path, from_hugging_face), None)


def _check_tied(head: Tensor, embedding: Tensor) -> None:
    step = 4096
    if head.shape != embedding.shape or any(
        np.any(head[at : at + step] != embedding[at : at + step])
        for at in range(0, head.shape[0], step)
    ):
        raise ValueError(
            f"{head.file}: tensor {_HEAD!r} is not the embedding, but config.json has "
            "tie_word_embeddings; make that false to use both"
        )
