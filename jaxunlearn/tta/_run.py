"""One method over one array of images: `tta.run`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import adaptation, streams
from jaxunlearn.tta.deployment import check_images, deploy
from jaxunlearn.tta.method import Method


class Adapted(NamedTuple):
    """What `run` returns.

    Attributes:
        logits: what predictions are taken from, [N, K].
        predictions: their largest entries, int [N].
        params: all parameters of the adapted student.
    """

    logits: jax.Array
    predictions: jax.Array
    params: Tree


def run(
    method: Method,
    model: Model,
    params: Tree,
    stats: Tree,
    images: Any,
    *,
    batch_size: int,
    key: Key,
    source: tuple[Any, Any] | None = None,
    compute: str = "float32",
) -> Adapted:
    """Adapts a network to images in their order; each is predicted once, as its batch arrives.

    Labels play no part. A last batch that is not full is padded, and the padding changes nothing.

    Args:
        method: one of `tta.METHODS`, with its settings.
        model: images [B, H, W, C] to logits [B, K].
        params: its parameters; they stay valid.
        stats: its running statistics.
        images: float [N, H, W, C] in [0, 1].
        batch_size: images of a batch; the last one may have fewer.
        key: a typed key.
        source: images and labels that the network was trained on, for methods that use them.
        compute: type of the network's computation.

    Raises:
        ValueError: arguments that do not fit, before anything is compiled.
    """
    images = check_images("images", images)
    deployment = deploy(model, params, stats, images.shape[1:], batch_size, source, compute)
    tables = streams.batches(streams.in_order(len(images)), batch_size)
    state, shared = adaptation.begin(method, deployment, key)
    data = adaptation.data(method, deployment, images, tables)
    state, logits = adaptation.advance(
        state,
        shared,
        data,
        key,
        0,
        method=method,
        network=deployment.network,
        n_steps=len(tables["rows"]),
    )
    logits = logits.reshape(-1, logits.shape[-1])[: len(images)]
    return Adapted(logits, jnp.argmax(logits, -1), adaptation.adapted(state, shared))
