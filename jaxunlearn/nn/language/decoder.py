"""Decoder-only language models: Llama 2 and 3, Qwen 2, 2.5 and 3, from one config.

The parameters of all layers are stacked, [L, ...], and run under one `lax.scan`, so that a program
compiles as fast for 80 layers as for 2:

    embed/table [V, D]                      norm/scale [D]
    layers/{attention_norm,mlp_norm}/scale [L, D]
    layers/{q,k,v,o,gate,up,down}/kernel [L, in, out]  (and /bias [L, out] where the config says so)
    layers/{q_norm,k_norm}/scale [L, h]     (Qwen 3)
    head/kernel [D, V]                      (unless the embedding is the output layer)
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core import tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Model, from_nnx, stateless
from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import reader
from jaxunlearn.nn.language.block import Block
from jaxunlearn.nn.language.config import Config, RopeScaling, from_hugging_face
from jaxunlearn.nn.language.pretrained import opened
from jaxunlearn.nn.layers.norms import rms_norm
from jaxunlearn.nn.layers.rotary import rope_frequencies, rotation
from jaxunlearn.nn.layers.stacks import Stack, span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "PREFIX",
    "Cache",
    "Config",
    "Pretrained",
    "RopeScaling",
    "decoder",
    "first_layers",
    "from_hugging_face",
    "from_pretrained",
    "head",
    "init_cache",
    "read_config",
    "read_tokenizer",
    "shardings",
]

PREFIX = -1  # the segment that every other segment of its row reads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens that were read.

    Attributes:
        keys: [L, B, S, K, h].
        values: [L, B, S, K, h].
        real: bool [B, S], slots that hold a real token.
        used: int32 [], slots that are taken; the next tokens follow there.
    """

    keys: jax.Array
    values: jax.Array
    real: jax.Array
    used: jax.Array


def init_cache(config: Config, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for `slots` tokens per sequence, padding included.

    Raises:
        ValueError: more slots than the context.
    """
    if slots > config.context:
        raise ValueError(f"slots is {slots}; the context of this network is {config.context}")
    shape = (config.n_layers, batch, slots, config.n_kv_heads, config.head_dim)
    empty = jnp.zeros(shape, dtype)
    return Cache(empty, empty, jnp.zeros((batch, slots), bool), jnp.zeros((), jnp.int32))


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def decoder(config: Config, compute_dtype: str | None = None) -> Model:
    """A language model under the common contract.

    `apply(params, {}, tokens, positions=None, mask=None, ...)` maps int32 tokens [B, T] to float32
    logits [B, T, V], those at t being for the token at t + 1. Its arguments, apart from the
    contract's:

    - `positions`: int32 [B, T]; by default real tokens are counted from 0.
    - `mask`: bool [B, T], True at real tokens; padding may be on either side. Logits at padding
      mean nothing, but are finite.
    - `segments`: int32 [B, T] for several texts in a row: a token attends to those before it in
      its own segment and in segment `PREFIX`, which all texts of the row begin with.
    - `cache`: a `Cache`; the tokens follow those in it, and the result is `(logits, cache)`.
    - `stop_at`: static; runs only the first layers and gives the residual stream [B, T, D] after
      them (after all of them, as transformers' last hidden state: normalised, unless `start_at` is
      given too).
    - `start_at`: static; `tokens` is the residual stream [B, T, D] after so many layers, which are
      skipped; `params["layers"]` holds all layers, or those that run. With 0 tokens will do.
    - `return_hidden`: static; gives the hidden state [B, T, D] that the output layer reads.
    - `remat`: static; recomputes each layer in the backward pass instead of keeping what is inside.
    - `unroll`: static; layers per turn of the loop over them: faster on a CPU, slower to compile.

    Args:
        config: config of the network.
        compute_dtype: type of the activations, such as "bfloat16"; by default the embedding's.
            Norms, softmax, rotation angles and logits are float32 in any case.

    Returns:
        A model whose `init` draws normal weights: standard deviation 0.02, and 0.02 / sqrt(2 L)
        for the two layers that add to the residual stream.
    """
    net = _Decoder(config, compute_dtype, Stack(_block(config), config.n_layers))
    return stateless(jax.jit(net.init), net.apply)


@functools.cache
def _block(config: Config) -> Model:
    return from_nnx(lambda rngs: Block(config, rngs))


class _Decoder(NamedTuple):
    """See `decoder`."""

    config: Config
    compute_dtype: str | None
    layers: Stack

    def init(self, key: Key) -> tuple[Tree, Tree]:
        shape = (self.config.vocabulary, self.config.width)
        params = {
            "embed": {"table": 0.02 * jax.random.normal(fold(key, "embed"), shape)},
            "layers": self.layers.init(fold(key, "layers")),
            "norm": {"scale": jnp.ones(self.config.width)},
        }
        if not self.config.tied:
            out = 0.02 * jax.random.normal(fold(key, "head"), shape[::-1])
            params["head"] = {"kernel": out}
        return params, {}

    def apply(
        self,
        params: Tree,
        stats: Tree,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        start_at: int | None = None,
        stop_at: int | None = None,
        return_hidden: bool = False,
        remat: bool = False,
        unroll: int = 1,
    ) -> tuple[Any, Tree]:
        config = self.config
        rows = {"positions": positions, "mask": mask, "segments": segments}
        _check(config, tokens, rows, cache, start_at, stop_at)
        start, stop = span(config.n_layers, start_at, stop_at, ("start_at", "stop_at"))
        if positions is None:
            positions = _count(tokens, mask, cache)
        x = tokens if tokens.ndim == 3 else params["embed"]["table"][tokens]
        x = x.astype(self.compute_dtype or x.dtype)
        at = 0 if cache is None else cache.used
        allowed, cache = _allowed(tokens, mask, segments, cache)
        frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        x, keys_values = self.layers.run(
            params["layers"],
            x,
            rotation(positions, frequencies),
            allowed,
            at,
            start=start,
            stop=stop,
            unroll=unroll,
            remat=remat,
            per_block=None if cache is None else (cache.keys, cache.values),
        )
        if stop_at is None or (start_at is None and stop_at == config.n_layers):
            x = rms_norm(x, params["norm"]["scale"], config.eps)
        out = x if return_hidden or stop_at is not None else head(params, x)
        if cache is not None:
            out = (out, dataclasses.replace(cache, keys=keys_values[0], values=keys_values[1]))
        return out, stats


def head(params: Tree, hidden: jax.Array) -> jax.Array:
    """The output layer: hidden states [..., D] to float32 logits [..., V]."""
    if "head" not in params:
        table = params["embed"]["table"].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
    return (hidden @ params["head"]["kernel"].astype(hidden.dtype)).astype(jnp.float32)


def first_layers(params: Tree, n: int) -> Tree:
    """The part of the parameters that `stop_at=n` reads, for n below the number of layers.

    Who trains only these spends no gradients and no optimizer state on the layers above.
    """
    layers = jax.tree.map(lambda leaf: leaf[:n], params["layers"])
    return {"embed": params["embed"], "layers": layers}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights and its tokenizer.

    Attributes:
        config: config of the network.
        params: float weights only, see the module's docstring.
        tokenizer: turns text into tokens; None where the folder has none.
        chat_template: the Jinja template that comes with the tokenizer, or None; a
            `core.chat.Jinja`, which knows the special tokens that the template may write.
    """

    config: Config
    params: Tree
    tokenizer: "Tokenizer | None"
    chat_template: str | None = None

    @property
    def model(self) -> Model:
        """The network under the common contract."""
        return decoder(self.config)

    @property
    def apply(self) -> Callable[..., jax.Array]:
        """`apply(params, tokens, positions=None, mask=None) -> logits`, see `decoder`."""
        return _logits(self.config)


@functools.cache
def _logits(config: Config) -> Callable[..., jax.Array]:
    model = decoder(config)

    def apply(
        params: Tree,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        return model.apply(params, {}, tokens, positions, mask)[0]

    return apply


def from_pretrained(
    path: str | os.PathLike,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> Pretrained:
    """Reads a network from a Hugging Face folder (safetensors) or a `.gguf` file.

    - A Hugging Face folder has `config.json`, `model.safetensors` or several files and
      `model.safetensors.index.json`, and perhaps `tokenizer.json`.
    - A `.gguf` file of the architectures llama, qwen2 and qwen3 holds all of it; quantised weights
      are dequantised. The package `gguf` is needed.
    - The tokenizer encodes as the original does, with the token that begins a text where that adds
      one (Llama 2 and 3); `encode(text, add_special_tokens=False)` leaves it out. It neither pads
      nor truncates. The package `tokenizers` is needed.
    - A text ends by any of the tokens that `config.json`, `generation_config.json` and the chat
      template (its end of turn) name: all of them are in `config.eos`, and likewise for a `.gguf`
      file. A chat template needs the package `jinja2`.
    - A tied network's output layer that is stored all the same must equal the embedding.

    Args:
        path: the folder or file.
        dtype: type of the weights in memory, whatever the file's.
        mesh: devices with axes `data` and `model`, over which the weights are laid (see
            `shardings`); each process reads only its own part.
        variant: kind of weights, where a folder has several: "fp16" for `model.fp16.safetensors`.

    Raises:
        ValueError: no model there, an architecture that is not supported, or tensors that are
            missing, left over, cut off or of another shape; they are named.
        MissingPackageError: a package is needed that is not installed.
    """
    dtype, source = reader.float_type(dtype), opened(path)
    tokenizer, chat_template = source.tokenizer()
    with reading(path):  # sizes beyond those of arrays
        shapes = reader.shapes_of(decoder(source.config))
    layout = None if mesh is None else shardings(shapes, mesh)
    params = source.params(shapes, dtype, layout, variant)
    return Pretrained(source.config, params, tokenizer, chat_template)


def read_config(path: str | os.PathLike) -> Config:
    """The config of a folder or file that `from_pretrained` reads; no weights are read.

    Raises:
        ValueError: no model there, or an architecture that is not supported.
    """
    return opened(path).config


def read_tokenizer(path: str | os.PathLike) -> "tuple[Tokenizer | None, str | None]":
    """Tokenizer and chat template, as `from_pretrained` has them; no weights are read.

    Raises:
        ValueError: no model there, or a tokenizer that cannot be read.
        MissingPackageError: there is a tokenizer, but not the package `tokenizers`.
    """
    return opened(path).tokenizer()


def shardings(params: Tree, mesh: Mesh) -> Tree:
    """How weights are laid over a mesh with axes `data` and `model`, or one of them.

    Matrices are split over `model` along heads or the MLP's width (the vocabulary, for the
    embedding and the output layer) and over `data` along the other side; what an axis does not
    divide stays whole along it. Adapters are split as the side of the matrix they share.

    The parameters may be `ShapeDtypeStruct`s.
    """

    def choose(name: str, leaf: Any) -> NamedSharding:
        into, out = ("model", "data") if "/o/" in name or "/down/" in name else ("data", "model")
        axes: tuple[str | None, ...] = (None,) * len(leaf.shape)
        if name == "embed/table":
            axes = ("model", "data")
        elif name.endswith("lora_a"):
            axes = (None, into, None)
        elif name.endswith("lora_b"):
            axes = (None, None, out)
        elif "/kernel" in name and len(leaf.shape) >= 2:
            axes = (into, out) if len(leaf.shape) == 2 else (None, into, out)
        fits = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    named = tree.named(params)
    return jax.tree.unflatten(
        jax.tree.structure(params), [choose(name, leaf) for name, leaf in named.items()]
    )


def _check(
    config: Config,
    tokens: Any,
    rows: dict[str, Any],
    cache: Cache | None,
    start_at: int | None,
    stop_at: int | None,
) -> None:
    _check_tokens(config, tokens, start_at)
    for name, value in rows.items():
        if value is not None and value.shape != tokens.shape[:2]:
            raise ValueError(
                f"{name} has shape {list(value.shape)}; tokens have {list(tokens.shape)}"
            )
    is_packed = rows["segments"] is not None
    if not is_packed and tokens.shape[1] > config.context:  # of several texts each fits
        raise ValueError(
            f"tokens has {tokens.shape[1]} positions; the context of this network is "
            f"{config.context}"
        )
    if cache is not None and (is_packed or (start_at, stop_at) != (None, None)):
        raise ValueError("cache is given with segments, start_at or stop_at; it needs none of them")


def _check_tokens(config: Config, tokens: Any, start_at: int | None) -> None:
    given = f"tokens are {tokens.dtype}{list(tokens.shape)}"
    if start_at is not None and tokens.ndim == 3:
        if tokens.shape[2] != config.width:
            raise ValueError(f"{given}; a residual stream [B, T, {config.width}] is needed")
    elif start_at:
        raise ValueError(f"{given}; with start_at a residual stream [B, T, D] is needed")
    elif tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"{given}; integers [B, T] needed")


def _count(tokens: jax.Array, mask: jax.Array | None, cache: Cache | None) -> jax.Array:
    """Positions that count real tokens, from those in the cache on."""
    real = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
    before = 0 if cache is None else jnp.sum(cache.real, axis=1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(before + jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)


def _allowed(
    tokens: jax.Array, mask: jax.Array | None, segments: jax.Array | None, cache: Cache | None
) -> tuple[jax.Array, Cache | None]:
    """Slots that each token may attend to, bool [B, T, S], and the cache with the tokens noted."""
    batch, length = tokens.shape[:2]
    real = jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
    if cache is None:
        allowed = jnp.tril(jnp.ones((length, length), bool)) & real[:, None]
        if segments is not None:
            allowed &= (segments[:, :, None] == segments[:, None]) | (segments == PREFIX)[:, None]
        return allowed, None
    known = jax.lax.dynamic_update_slice_in_dim(cache.real, real, cache.used, axis=1)
    slots = jnp.arange(known.shape[1])
    taken = cache.used + jnp.arange(length)
    allowed = (slots <= taken[:, None]) & known[:, None]
    return allowed, dataclasses.replace(cache, real=known, used=cache.used + length)
