"""Decoders into files: Hugging Face folders, and PEFT's adapters; `decoder.from_pretrained` reads.

No file is ever pickled.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import peft, writer
from jaxunlearn.nn.files.reader import shapes_of
from jaxunlearn.nn.language import decoder
from jaxunlearn.nn.language import tokenizers as _tokenizers
from jaxunlearn.nn.language.config import to_hugging_face
from jaxunlearn.nn.language.tensor_names import HUGGING_FACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["load_adapter", "save", "save_adapter"]


def save(
    path: str | os.PathLike,
    config: decoder.Config,
    params: Tree,
    *,
    tokenizer: "Tokenizer | None" = None,
    chat_template: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a Hugging Face folder that `from_pretrained` and transformers read.

    - Adapters are merged into the kernels below them; every leaf keeps its type, and what
      `from_pretrained` then reads in that type is the same bits.
    - Each file appears whole or not at all; weights of an earlier `save` are replaced.
    - Of several processes all call it, and the first writes.

    Args:
        path: the folder; it is made if it is not there.
        config: the network.
        params: parameters, with or without adapters.
        tokenizer: written as `tokenizer.json` if given.
        chat_template: written beside the tokenizer.
        max_shard_bytes: largest file of weights; only a single larger tensor exceeds it.

    Raises:
        ValueError: parameters that are not this network's; a leaf of a type that safetensors files
            of this module do not hold; a config that `config.json` cannot express.
    """
    leaves = writer.checked(params, shapes_of(decoder.decoder(config)))
    record = to_hugging_face(config, np.dtype(leaves["embed/table"].dtype).name)
    if decoder.from_hugging_face(record) != config:
        raise ValueError(f"config is {config}, for which config.json has no form")
    texts: dict[str, str | None] = {}
    if tokenizer is not None:
        end = config.eos[0] if config.eos else None
        texts |= _tokenizers.files(tokenizer, chat_template, config.bos, end)
        texts["chat_template.jinja"] = None  # it would go before the template written here
    texts["config.json"] = json.dumps(record, indent=2)  # last: the folder is now complete
    writer.save(Path(path), leaves, HUGGING_FACE, texts, max_shard_bytes=max_shard_bytes)


def save_adapter(
    path: str | os.PathLike, params: Tree, *, base: str = "", rank_stabilized: bool = False
) -> None:
    """Writes the outermost adapters as PEFT does: a folder with one file of weights and a config.

    Adapters below the outermost ones belong to the base that this file is for, whose name or path
    `base` is noted in the config. With `rank_stabilized` the scale is alpha / sqrt(r), not alpha /
    r. The folder is made if need be. Of several processes all call it, and the first writes.

    Raises:
        ValueError: no adapters, or several ranks or scales, as where a layer is switched off.
    """
    peft.save(Path(path), params, HUGGING_FACE, base, rank_stabilized)


def load_adapter(path: str | os.PathLike, params: Tree) -> Tree:
    """Puts the adapters of a folder of PEFT's form on the kernels they are for.

    A kernel that carries an adapter already gets a second one on top, as with
    `core.adapters.attach`. What `save_adapter` wrote is the same bits again. The folder has
    `adapter_config.json` and `adapter_model.safetensors`. Over a mesh, lay the result by
    `decoder.shardings` afterwards.

    Raises:
        ValueError: no such folder; an entry of the config that is not known and not empty, or that
            asks for another computation (DoRA, activated LoRA, PiSSA and other initialisations
            that change the base); or adapters of another network: names, shapes or ranks that do
            not fit; the kernel is named.
    """
    with reading(Path(path)):
        return peft.load(Path(path), params, HUGGING_FACE)
