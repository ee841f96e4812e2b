"""Prototypes: the mean features of each class of the source, which stay as they are."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import loop
from jaxunlearn.core.keys import Key
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import masked
from jaxunlearn.tta.deployment import Deployment, n_features
from jaxunlearn.tta.network import Network
from jaxunlearn.tta.replay import Replay, replayed

MOST = 100_000  # no further batch is read after so many images


class Prototypes(NamedTuple):
    """Mean features of classes.

    Attributes:
        means: [K, D]; 0 for a class that the source lacks.
        present: bool [K], whether it has it.
    """

    means: jax.Array
    present: jax.Array

    def nearest(self, features: jax.Array) -> jax.Array:
        """For features [B, D] the mean of largest cosine, of classes that are present, [B, D]."""
        cosines = _normalised(features) @ _normalised(self.means).T
        return self.means[jnp.argmax(jnp.where(self.present, cosines, -jnp.inf), axis=1)]


def of_source(deployment: Deployment, key: Key) -> Prototypes:
    """The prototypes of a network: its features before it adapts, statistics of each batch.

    The source is shuffled by the key, and read in batches of the deployment's size.

    Raises:
        ValueError: a network that does not give its features.
    """
    network, params, stats = deployment.network, deployment.params, deployment.stats
    assert deployment.source is not None
    data = replayed(deployment.source, deployment.batch_size)
    n_batches = min(data.steps_per_epoch, MOST // data.batch_size + 1)
    sizes = n_features(deployment), deployment.n_classes, n_batches
    return _means(network, params, stats, data, key, *sizes)


@functools.partial(jax.jit, static_argnames=("network", "n_features", "n_classes", "n_batches"))
def _means(
    network: Network,
    params: Tree,
    stats: Tree,
    data: Replay,
    key: Key,
    n_features: int,
    n_classes: int,
    n_batches: int,
) -> Prototypes:
    def add(sums, shared, batch, key):
        del shared, key
        kept = masked.valid(batch)
        _, features = network.features(params, stats, batch["x"], kept=kept)
        is_class = jax.nn.one_hot(batch["y"], n_classes)
        is_class = is_class * masked.everywhere(kept, len(is_class))[:, None]
        return (sums[0] + is_class.T @ features, sums[1] + jnp.sum(is_class, axis=0)), {}

    zeros = jnp.zeros((n_classes, n_features)), jnp.zeros(n_classes)
    (sums, counts), _ = loop.scan(add, zeros, None, data, key, n_batches)
    return Prototypes(sums / jnp.maximum(counts, 1)[:, None], counts > 0)


def _normalised(rows: jax.Array) -> jax.Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)
