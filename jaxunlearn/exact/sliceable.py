"""What sliced training needs of a network: layers that can be run in parts, outputs, losses."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxunlearn.core import losses, tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.data.text import Sequences
from jaxunlearn.nn.images import vit
from jaxunlearn.nn.language import decoder, likelihood

Config: TypeAlias = vit.Config | decoder.Config
Read = Callable[[Tree, jax.Array, Any], Any]  # (params, residual stream, examples without x)

LANGUAGE_TARGETS = r"layers/(q|k|v|o|gate|up|down)/kernel"  # what S3T adapts in Llama
IMAGE_TARGETS = r"layers/(q|v)/kernel"  # what S3T adapts in a ViT

_UNROLL = 8  # layers in one turn of a loop: a third faster on a CPU than one, gradients included


@dataclasses.dataclass(frozen=True)
class Network:
    """A stack of layers below an output layer; functions and sizes only.

    Examples are dicts of arrays with a common leading axis: `x` is what the layers read, everything
    else what `losses` and `outputs` need beside it.

    Attributes:
        model: takes the static arguments `start_at` and `stop_at`, see `nn.vit.build`.
        n_layers: N.
        targets: the kernels that get adapters, among `layers/...`.
        arrays: names of what examples hold beside `x`.
        output_arrays: those of them that `outputs` needs, too.
        trains_head: whether `head` trains in every stage (a new classifier), or stays the base's.
        losses: `losses(params, hidden, rest) -> (sums [n], counts [n])`, from the residual stream
            after all layers; the loss of a batch is the sum of the sums over that of the counts.
        outputs: `outputs(params, hidden, rest) -> [n, ...]`, of which an ensemble takes the mean.
    """

    model: Model
    n_layers: int
    targets: tree.Pattern
    arrays: tuple[str, ...]
    output_arrays: tuple[str, ...]
    trains_head: bool
    losses: Read
    outputs: Read

    def layers(self, params: Tree, x: Any, first: int, last: int) -> jax.Array:
        """The residual stream after layer `last`, from that after `first` (with 0, or inputs)."""
        unroll = max(1, min(last - first, _UNROLL))
        return self.model.apply(params, {}, x, start_at=first, stop_at=last, unroll=unroll)[0]


@functools.cache  # the same network is the same program
def of_vit(config: vit.Config) -> Network:
    """A ViT that classifies: adapters on queries and values, a head that trains.

    Examples: `x` images, `y` int labels [n]. Outputs: logits [n, n_classes], as in the official
    code.
    """
    model = vit.build(config)

    def logits(params: Tree, hidden: jax.Array, rest: Any) -> jax.Array:
        del rest
        return model.apply(params, {}, hidden, start_at=config.n_layers)[0]

    def nll(params: Tree, hidden: jax.Array, rest: Any) -> tuple[jax.Array, jax.Array]:
        by_row = losses.cross_entropy(logits(params, hidden, rest), rest["y"])
        return by_row, jnp.ones_like(by_row)

    return Network(model, config.n_layers, IMAGE_TARGETS, ("y",), (), True, nll, logits)


@functools.cache
def of_decoder(config: decoder.Config) -> Network:
    """A language model that answers: adapters on all kernels of its layers, none on the output.

    Examples: `x` int32 tokens [n, T], padded on the right, `where` and `labels` [n, R], as in
    `data.text.Sequences`. Outputs: the probability of every label, [n, R], 0 at padding: an
    ensemble of language models averages probabilities per token.
    """
    model = decoder.decoder(config)

    def nll(params: Tree, hidden: jax.Array, rest: Any) -> jax.Array:
        sequences = Sequences(hidden, rest["where"], rest["labels"])
        return likelihood.token_nll(model, params, sequences, start_at=config.n_layers)

    def sums(params: Tree, hidden: jax.Array, rest: Any) -> tuple[jax.Array, jax.Array]:
        by_label = nll(params, hidden, rest)
        return by_label.sum(-1), (rest["labels"] >= 0).sum(-1).astype(by_label.dtype)

    def probabilities(params: Tree, hidden: jax.Array, rest: Any) -> jax.Array:
        return jnp.where(rest["labels"] >= 0, jnp.exp(-nll(params, hidden, rest)), 0.0)

    arrays = ("where", "labels")
    return Network(
        model, config.n_layers, LANGUAGE_TARGETS, arrays, arrays, False, sums, probabilities
    )


def network_of(config: Config) -> Network:
    """The network that a config describes."""
    return of_vit(config) if isinstance(config, vit.Config) else of_decoder(config)


def record_of(config: Config) -> dict[str, Any]:
    """A config, JSON-like, as a store keeps it."""
    kind = "vit" if isinstance(config, vit.Config) else "decoder"
    return {"kind": kind} | dataclasses.asdict(config)


def config_of(record: dict[str, Any]) -> Config:
    """A config from its JSON-like form."""
    fields: dict[str, Any] = dict(record)
    if fields.pop("kind") == "vit":
        fields["image"] = tuple(fields["image"])
        return vit.Config(**fields)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = decoder.RopeScaling(**fields["rope_scaling"])
    fields["eos"] = tuple(fields["eos"])
    return decoder.Config(**fields)
