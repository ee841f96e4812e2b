"""Objectives for language models: a network, a loss of `objectives`, and where its inputs are.

All are objectives under the common contract, on batches of `data.text.Sequences`. References are
never recomputed: NLLs and hidden states of the model before unlearning are made once
(`reference_nll`, `response_hidden`), and ride in the batch by example.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import chunks, tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.step import Objective
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.language import likelihood
from jaxunlearn.unlearn import objectives

# loss(nll [B], lengths [B], ref_nll [B]) -> [], of the forget set alone
LocalLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# The local losses of the retrain-equivalence study (arXiv 2510.16629, section 4.1 and its code);
# `simnpo_length` is SimNPO as its authors normalise it.
LOCAL: dict[str, LocalLoss] = {
    "ga": lambda nll, lengths, ref: objectives.ascent(nll, lengths),
    "npo": lambda nll, lengths, ref: objectives.npo(nll, ref, beta=0.5, counted=lengths > 0),
    "simnpo": lambda nll, lengths, ref: objectives.simnpo(
        nll, lengths, beta=1.0, length_normalized=False
    ),
    "simnpo_length": lambda nll, lengths, ref: objectives.simnpo(nll, lengths, beta=1.0),
}

READ_REFERENCE = frozenset({"npo"})  # those of LOCAL that read `ref_nll`


@functools.cache  # the same function is the same program, compiled once
def on_base(objective: Objective) -> Objective:
    """Lets an objective see all parameters while `shared` holds those that do not train.

    The trainable part (such as adapters) arrives as `params`, with holes that `shared` fills.
    """

    def wrapped(params, stats, shared, batch, key):
        return objective(tree.combine(params, shared), stats, None, batch, key)

    return wrapped


@functools.cache
def fine_tuning(model: Model, **static: Any) -> Objective:
    """Token-mean cross-entropy of responses, over the whole batch (`objectives.descent`).

    Switches of the network (`remat`, `unroll`) are passed on, here and by the others below.
    """
    return _of_batch(
        lambda params, batch: objectives.descent(
            likelihood.sequence_nll(model, params, batch, **static), batch.lengths
        )
    )


def forgetting(model: Model, loss: LocalLoss, **static: Any) -> Objective:
    """A local loss on batches `{"sequences": Sequences, "ref_nll": [B]}` of the forget set."""

    def value(params, batch):
        sequences = batch["sequences"]
        nll = likelihood.sequence_nll(model, params, sequences, **static)
        return loss(nll, sequences.lengths, batch["ref_nll"])

    return _of_batch(value)


def one_of(losses: Mapping[str, LocalLoss], number: jax.Array) -> LocalLoss:
    """The loss of a traced number, so that one program serves members with different losses.

    All are computed, which costs nothing beside the network, and one is taken.
    """

    def loss(nll, lengths, ref_nll):
        values = [one(nll, lengths, ref_nll) for one in losses.values()]
        return jnp.stack(values)[number]

    return loss


def kl_to_reference(model: Model, **static: Any) -> Objective:
    """KL(reference || model) at the response positions of retain data.

    The batch is `{"sequences": Sequences, "hidden": [B, R, D]}`, the hidden states of the model
    before unlearning (`likelihood.response_hidden`), whose output layer must be the trained one's:
    it stays frozen. D numbers a token are kept in place of V, and they give the logits exactly.
    """

    def value(params, batch):
        sequences = batch["sequences"]
        hidden = likelihood.response_hidden(model, params, sequences, **static)
        return likelihood.mean_kl(params, hidden, batch["hidden"], sequences.labels >= 0)

    return _of_batch(value)


def misdirection(model: Model, layer: int, **static: Any) -> Objective:
    """RMU on forget data: the hidden state after `layer` layers is pushed to a fixed vector.

    The batch is `{"sequences": Sequences, "control": [B, D]}`, of one topic, whose
    `objectives.control_vector` stands in every row. Later layers and the output layer are not
    computed, nor needed: `decoder.first_layers` of the parameters are enough to train.
    """

    def value(params, batch):
        hidden, _ = model.apply(params, {}, batch["sequences"].tokens, stop_at=layer, **static)
        return objectives.rmu(hidden, batch["control"][0])

    return _of_batch(value)


def steadiness(model: Model, layer: int, **static: Any) -> Objective:
    """RMU on retain data: the hidden state after `layer` layers stays what it was.

    The batch is `{"sequences": Sequences, "hidden": [B, T, D]}`, of the model before unlearning.
    """

    def value(params, batch):
        hidden, _ = model.apply(params, {}, batch["sequences"].tokens, stop_at=layer, **static)
        return objectives.rmu_retain(hidden, batch["hidden"])

    return _of_batch(value)


def _of_batch(value: Callable[[Tree, Any], jax.Array]) -> Objective:
    """The objective of a loss that only depends on parameters and batch."""

    def objective(params, stats, shared, batch, key):
        del shared, key
        return value(params, batch), (stats, {})

    return objective


def reference_nll(model: Model, params: Tree, sequences: Any, chunk: int = 16) -> jax.Array:
    """NLL of every sequence under the model before unlearning, summed, [N]; made once."""
    return chunks.mapped(
        lambda part: likelihood.sequence_nll(model, params, part), sequences, chunk
    )
