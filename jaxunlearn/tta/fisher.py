"""The Fisher information of a network on its source, which says what not to change (EATA)."""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.losses import cross_entropy
from jaxunlearn.core.tree import Tree, combine
from jaxunlearn.tta import masked
from jaxunlearn.tta.deployment import Deployment, Samples
from jaxunlearn.tta.network import Network
from jaxunlearn.tta.replay import Replay, replayed

_MOST = 2000  # images that it is taken of, as published for CIFAR-10 and ImageNet


def of_source(deployment: Deployment, params: Tree, frozen: Tree, key: Key) -> Tree:
    """The mean over batches of the squared gradient of the loss on the network's own labels.

    Args:
        deployment: with its source, of which at most 2,000 images are drawn.
        params: the part that trains.
        frozen: the rest.
        key: draws them, and shuffles them into batches.

    Returns:
        A tree like `params`.
    """
    assert deployment.source is not None
    x, y = deployment.source
    if len(y) > _MOST:
        drawn = jax.random.permutation(fold(key, "fisher"), len(y))[:_MOST]
        x, y = x[drawn], y[drawn]
    source = replayed(Samples(x, y), deployment.batch_size)
    return _information(deployment.network, params, frozen, deployment.stats, source, key)


@functools.partial(jax.jit, static_argnames="network")
def _information(
    network: Network, params: Tree, frozen: Tree, stats: Tree, source: Replay, key: Key
) -> Tree:
    n_batches = source.steps_per_epoch

    def loss(params, batch):
        kept = masked.valid(batch)
        logits = network.logits(combine(params, frozen), stats, batch["x"], kept=kept)
        return masked.mean(cross_entropy(logits, logits.argmax(-1)), kept)

    def add(total, row):
        grads = jax.grad(loss)(params, source.gather(row, key))
        return jax.tree.map(lambda t, g: t + g * g / n_batches, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, source.plan(key, jnp.arange(n_batches)))[0]
