"""Vision Transformers (Dosovitskiy et al. 2021, arXiv 2010.11929).

Stacked as `nn.decoder`'s layers are, under one `lax.scan`:

    embed/{cls [D], positions [T, D]}       embed/patch/{kernel [P P C, D], bias [D]}
    layers/{attention_norm,mlp_norm}/{scale,bias} [N, D]
    layers/{q,k,v,o,up,down}/{kernel [N, in, out], bias [N, out]}
    norm/{scale,bias} [D]                   head/{kernel [D, n_classes], bias [n_classes]}
"""

import functools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Model, from_nnx, stateless
from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import folder, reader, writer
from jaxunlearn.nn.images.vit_config import (
    HEAD,
    Config,
    normalisation,
    read_config,
    table,
    to_hugging_face,
)
from jaxunlearn.nn.layers.attention import attend
from jaxunlearn.nn.layers.linear import Linear
from jaxunlearn.nn.layers.norms import LayerNorm, layer_norm
from jaxunlearn.nn.layers.stacks import Stack, span

__all__ = ["Config", "build", "from_pretrained", "normalisation", "read_config", "save_pretrained"]

_MOST_NEW = 2**16  # outputs of a layer that is drawn because a file says so


class Block(nnx.Module):
    """h += attention(norm(h)); h += down(gelu(up(norm(h))))."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        c = self.config = config
        std = 0.02
        deep = std / math.sqrt(2 * c.n_layers)  # what is added to the residual stream
        linear = functools.partial(Linear, use_bias=True, rngs=rngs)
        self.attention_norm = LayerNorm(c.width, c.eps)
        self.q, self.k, self.v = (linear(c.width, c.width, std=std) for _ in "qkv")
        self.o = linear(c.width, c.width, std=deep)
        self.mlp_norm = LayerNorm(c.width, c.eps)
        self.up = linear(c.width, c.mlp_width, std=std)
        self.down = linear(c.mlp_width, c.width, std=deep)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        z = self.attention_norm(x_BTD)
        heads = (*x_BTD.shape[:2], c.n_heads, c.width // c.n_heads)
        q, k, v = (part(z).reshape(heads) for part in (self.q, self.k, self.v))
        x_BTD = x_BTD + self.o(attend(q, k, v).reshape(x_BTD.shape))
        z = self.mlp_norm(x_BTD)
        return x_BTD + self.down(jax.nn.gelu(self.up(z), approximate=False))


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def build(config: Config) -> Model:
    """A ViT under the common contract; it has no statistics and no dropout.

    `apply(params, {}, x, ...)` maps images [B, H, W, C] to logits [B, n_classes]. Static arguments:

    - `start_at`: x is the residual stream [B, T, D] after so many layers, which are skipped (with
      0, that after the embedding, or images).
    - `stop_at`: gives the residual stream [B, T, D] after so many layers.
    - `remat`: the backward pass computes what is inside a layer again instead of keeping it.
    - `unroll`: layers per turn of the loop over them.
    - `return_features`: gives (logits, features before the last layer [B, D]), unless it stops.

    Of `params` only what runs is read; `params["layers"]` holds all layers, or those that run.
    """
    block = from_nnx(lambda rngs: Block(config, rngs))
    net = _ViT(config, Stack(block, config.n_layers))
    return stateless(jax.jit(net.init), net.apply)


class _ViT(NamedTuple):
    """See `build`."""

    config: Config
    layers: Stack

    def init(self, key: Key) -> tuple[Tree, Tree]:
        c = self.config

        def draw(name: str, *shape: int) -> jax.Array:
            return 0.02 * jax.random.truncated_normal(fold(key, name), -2, 2, shape)

        inputs = c.patch**2 * c.image[2]
        params = {
            "embed": {
                "cls": draw("cls", c.width),
                "positions": draw("positions", c.n_tokens, c.width),
                "patch": {"kernel": draw("patch", inputs, c.width), "bias": jnp.zeros(c.width)},
            },
            "layers": self.layers.init(fold(key, "layers")),
            "norm": {"scale": jnp.ones(c.width), "bias": jnp.zeros(c.width)},
            "head": {"kernel": draw("head", c.width, c.n_classes), "bias": jnp.zeros(c.n_classes)},
        }
        return params, {}

    def apply(
        self,
        params: Tree,
        stats: Tree,
        x: jax.Array,
        *,
        start_at: int = 0,
        stop_at: int | None = None,
        remat: bool = False,
        unroll: int = 1,
        return_features: bool = False,
    ) -> tuple[Any, Tree]:
        c = self.config
        start, stop = span(c.n_layers, start_at, stop_at, ("start_at", "stop_at"))
        if start == 0 and x.ndim == 4:
            x = _embed(c, params["embed"], x)
        elif x.shape[1:] != (c.n_tokens, c.width):
            raise ValueError(f"x has shape {list(x.shape)}; [B, {c.n_tokens}, {c.width}] is needed")
        x, _ = self.layers.run(
            params["layers"], x, start=start, stop=stop, remat=remat, unroll=unroll
        )
        if stop_at is not None:
            return x, stats
        logits, features = _classify(c, params, x)
        return ((logits, features) if return_features else logits), stats


def from_pretrained(
    path: str | os.PathLike,
    *,
    n_classes: int | None = None,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    seed: int = 0,
) -> tuple[Config, Tree]:
    """Reads a network from a Hugging Face folder of `ViTForImageClassification` or `ViTModel`.

    Images are [B, H, W, C] here and [B, C, H, W] there, normalised as the checkpoint's were. What
    transformers adds between the two, a pooler, is left out.

    Args:
        path: the folder, with `config.json` and `model.safetensors`, or several files and their
            index.
        n_classes: outputs; by default as many as there are labels in `config.json`. Where the
            folder has no output layer or one of another size, it is drawn as `init` draws it.
        dtype: type of the weights in memory, whatever the file's.
        variant: kind of weights, where a folder has several: "fp16" for `model.fp16.safetensors`.
        seed: seed of an output layer that is drawn.

    Returns:
        The config and the parameters of `build(config)`.

    Raises:
        ValueError: no model there, an option that is not supported, or tensors that are missing,
            left over, cut off or of another shape; they are named.
    """
    path, dtype = Path(path), reader.float_type(dtype)
    config = read_config(path, n_classes)
    model, places = build(config), table(config)
    with reading(path):  # sizes beyond those of arrays
        shapes = dict(reader.shapes_of(model))
    tensors = folder.tensors(path, variant=variant, ignore=places.ignore)
    head = tensors.get(f"{HEAD}.weight")
    is_new = head is None or (n_classes is not None and head.shape[:1] != (n_classes,))
    if is_new and n_classes is None and config.n_classes > _MOST_NEW:
        raise ValueError(f"{path}: no output layer, but {config.n_classes} labels; give n_classes")
    if is_new:
        tensors = {name: it for name, it in tensors.items() if not name.startswith(HEAD)}
        del shapes["head"]
    params = reader.read(path, tensors, places, shapes, dtype)
    if is_new:
        drawn = jax.jit(lambda key: model.init(key)[0]["head"])(jax.random.key(seed))
        params["head"] = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)
    return config, params


def save_pretrained(path: str | os.PathLike, config: Config, params: Tree) -> None:
    """Writes a Hugging Face folder that `from_pretrained` and transformers read.

    - Adapters are merged into the kernels below them; every leaf keeps its type, and what
      `from_pretrained` then reads in that type is the same bits.
    - Labels get the names that transformers gives to nameless ones.
    - The folder is made if need be. Of several processes all call it, and the first writes.

    Raises:
        ValueError: parameters that are not this network's, or a leaf that is not of floats.
    """
    leaves = writer.checked(params, reader.shapes_of(build(config)))
    record = to_hugging_face(config, np.dtype(leaves["embed/cls"].dtype).name)
    texts = {"config.json": json.dumps(record, indent=2)}
    writer.save(Path(path), leaves, table(config), texts)


def _embed(c: Config, embed: Tree, x: jax.Array) -> jax.Array:
    if x.shape[1:] != c.image:
        raise ValueError(f"x has shape {list(x.shape)}; [B, {', '.join(map(str, c.image))}] needed")
    rows, columns = c.image[0] // c.patch, c.image[1] // c.patch
    patches = x.reshape(-1, rows, c.patch, columns, c.patch, c.image[2]).swapaxes(2, 3)
    patches = patches.reshape(x.shape[0], rows * columns, -1)
    tokens = patches @ embed["patch"]["kernel"] + embed["patch"]["bias"]
    cls = jnp.broadcast_to(embed["cls"].astype(tokens.dtype), (x.shape[0], 1, c.width))
    return jnp.concatenate([cls, tokens], axis=1) + embed["positions"]


def _classify(c: Config, params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits, and the class token before the last layer."""
    norm, head = params["norm"], params["head"]
    features = layer_norm(x[:, 0], norm["scale"], norm["bias"], c.eps)
    return (features @ head["kernel"] + head["bias"]).astype(jnp.float32), features
