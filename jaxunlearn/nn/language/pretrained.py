"""A pretrained decoder in a Hugging Face folder or a GGUF file, opened before weights are read.

Of a GGUF file of llama.cpp the config is gathered from metadata and tensors, and the layout of its
rotary rows is undone.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxunlearn.core.chat import Jinja
from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import folder, gguf, reader
from jaxunlearn.nn.files.configs import of_folder, read_json
from jaxunlearn.nn.files.reader import Tensor
from jaxunlearn.nn.language import tokenizers, turns
from jaxunlearn.nn.language.config import ARCHITECTURES, Config, from_hugging_face, token_ids
from jaxunlearn.nn.language.tensor_names import GGUF, HUGGING_FACE
from jaxunlearn.nn.layers.rotary import RopeScaling, rope_frequencies

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Entries of a GGUF file's network that are read or do not matter, and what others must be.
_READ = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
}
_PLAIN = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),  # 0 is llama.cpp's word for none
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1,),
    "tensor_data_layout": ("Meta AI original pth",),  # that of the rotary rows of llama
    "use_parallel_residual": (False,),
}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Opened(NamedTuple):
    """What is known of a network before its weights are read.

    Attributes:
        path: the folder or file.
        config: sizes and switches; all tokens that end a text, wherever the files name them.
        chat_template: the Jinja template that comes with it, or None.
        gguf: tensors by name and metadata of a GGUF file, None for a folder.
    """

    path: Path
    config: Config
    chat_template: Jinja | None
    gguf: tuple[Mapping[str, Tensor], dict[str, Any]] | None

    def tokenizer(self) -> "tuple[Tokenizer | None, Jinja | None]":
        """Tokenizer and chat template, each None where there is none."""
        with reading(self.path):
            if self.gguf is None:
                return tokenizers.of_folder(self.path), self.chat_template
            return tokenizers.of_gguf(self.gguf[1]), self.chat_template

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
        config, tensors, metadata = _read_gguf(path)
        with reading(path):
            template = turns.template_of_gguf(metadata)
            config = _ending(config, template, lambda: turns.added_of_gguf(metadata))
        return Opened(path, config, template, (tensors, metadata))
    if path.exists() and not path.is_dir():
        raise ValueError(f"path is {str(path)!r}, which is neither a folder nor a .gguf file")
    config = of_folder(path, from_hugging_face)
    template = turns.template_of_folder(path)
    if (file := path / "generation_config.json").is_file():
        with reading(file):
            more = token_ids(read_json(file), "eos_token_id")
        config = dataclasses.replace(config, eos=tuple(dict.fromkeys((*config.eos, *more))))
    config = _ending(config, template, lambda: turns.added_of_folder(path))
    return Opened(path, config, template, None)


def _ending(
    config: Config, template: Jinja | None, added: Callable[[], Mapping[str, int]]
) -> Config:
    """The config, whose texts also end by the token that ends a turn of the chat template."""
    end = None if template is None else turns.end_of_turn(template, added())
    if end is None or end in config.eos or end >= config.vocabulary:
        return config
    return dataclasses.replace(config, eos=(*config.eos, end))


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


def _read_gguf(file: Path) -> tuple[Config, dict[str, gguf.QuantisedTensor], dict[str, Any]]:
    """Config, tensors by their names in the file, and metadata; the weights are not read yet."""
    tensors, metadata = gguf.read(file)
    factors = tensors.pop("rope_freqs.weight", None)
    with reading(file):
        config = _config(metadata, tensors, None if factors is None else factors[:])
    if config.family == "llama":  # llama.cpp rotates neighbours here, and halves for Qwen
        for name, tensor in tensors.items():
            if match := re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name):
                heads = config.n_heads if match[1] == "q" else config.n_kv_heads
                if tensor.shape[0] == heads * config.head_dim:  # else its shape is reported later
                    pairs = (heads, config.head_dim)
                    tensors[name] = dataclasses.replace(tensor, pairs=pairs)
    return config, tensors, metadata


def _config(
    metadata: dict[str, Any], tensors: Mapping[str, Any], factors: np.ndarray | None
) -> Config:
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"architecture is {family!r}; supported architectures are {', '.join(ARCHITECTURES)}"
        )

    def value(name: str, default: Any = None) -> Any:
        number = metadata.get(f"{family}.{name}", default)
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise ValueError(f"{family}.{name} is {number!r}; a number is needed")
        return number

    _refuse_what_is_not_computed(family, metadata)
    width, n_heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", width // max(n_heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if value(name, head_dim) != head_dim:
            raise ValueError(f"{family}.{name} is {value(name)}; it must be {head_dim}, a head's")
    theta = _shortest(value("rope.freq_base", 1e4))
    if "token_embd.weight" not in tensors:
        raise ValueError("tensor 'token_embd.weight' is missing")
    ends = [
        token_ids(metadata, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")
    ]
    return Config(
        family=family,
        vocabulary=tensors["token_embd.weight"].shape[0],
        width=width,
        mlp_width=value("feed_forward_length"),
        n_layers=value("block_count"),
        n_heads=n_heads,
        n_kv_heads=value("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        context=value("context_length"),
        eps=_shortest(value("attention.layer_norm_rms_epsilon")),
        rope_theta=theta,
        rope_scaling=None if factors is None else _scaling(factors, head_dim, theta),
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors or family == "qwen2",
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm=family == "qwen3",
        bos=next(iter(token_ids(metadata, "tokenizer.ggml.bos_token_id")), None),
        eos=tuple(dict.fromkeys(itertools.chain(*ends))),
    )


def _refuse_what_is_not_computed(family: str, metadata: Mapping[str, Any]) -> None:
    """Raises a ValueError that names an entry of the network's which asks for another function."""
    entries = {
        name.removeprefix(f"{family}."): value
        for name, value in metadata.items()
        if name.startswith(f"{family}.")
    }
    # llama.cpp takes a factor without a type, and the older entry, for linear scaling.
    kind = entries.pop("rope.scaling.type", None)
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        if entries.pop(name, 1) not in (0, 1) and kind is None:
            raise ValueError(
                f"{family}.{name} is {metadata[f'{family}.{name}']} without a type, which means "
                "linear scaling of positions; only Llama 3's is computed"
            )
    if kind not in (None, "none"):
        raise ValueError(f"{family}.rope.scaling.type is {kind!r}; only Llama 3's is computed")
    for name, value in entries.items():
        if name not in _READ and (name not in _PLAIN or value not in _PLAIN[name]):
            allowed = " or ".join(map(repr, _PLAIN.get(name, ()))) or "no such entry"
            raise ValueError(f"{family}.{name} is {value!r}; only {allowed} is computed")


def _scaling(factors: np.ndarray, head_dim: int, theta: float) -> RopeScaling | None:
    """Llama 3's scaling, from what the frequency of each pair is divided by."""
    if factors.shape != (head_dim // 2,):
        raise ValueError(f"tensor 'rope_freqs.weight' is not Llama 3's scaling: {factors.shape}")
    if np.all(factors == 1):
        return None
    # The file has the divisors only. All releases share low and high, and a context of 8192, which
    # is tried first; the factor is the largest divisor, where some pair is scaled in full.
    plain = rope_frequencies(head_dim, theta, None)
    tried = [_shortest(float(factors.max())), *(2.0**i for i in range(1, 9))]
    for context in (8192, *(2**i for i in range(4, 21))):
        for factor in tried:
            scaling = RopeScaling(factor, low=1.0, high=4.0, context=context)
            divisors = plain / rope_frequencies(head_dim, theta, scaling)
            if np.allclose(factors, divisors, rtol=1e-4, atol=0):
                return scaling
    raise ValueError(
        "tensor 'rope_freqs.weight' is not Llama 3's scaling (low 1, high 4, a context of 8192 or "
        "another power of two)"
    )


def _shortest(value: float) -> float:
    """The decimal number that was meant by a float32: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value)))
