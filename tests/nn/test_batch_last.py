"""Depthwise convolutions with the batch as the last axis."""

import chex
import jax
import pytest

from jaxunlearn.nn import _batch_last, plain_convolutions


def grouped(x, kernel):
    """XLA's own."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        feature_group_count=len(x),
    )


SHAPES = [((3, 5, 4, 9), 3), ((1, 1, 6, 33), 5), ((2, 7, 3, 1), 3)]


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_depthwise(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (size, size, shape[0]))
    g = jax.random.normal(jax.random.key(2), shape)

    def found(x, kernel, conv=_batch_last.depthwise):
        y, pull = jax.vjp(conv, x, kernel)
        return y, pull(g)

    theirs = found(x, kernel, grouped)
    ours = jax.jit(lambda: found(x, kernel))()
    with plain_convolutions():
        plain = jax.jit(lambda: found(x, kernel))()
    chex.assert_trees_all_close(plain, theirs, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    twice = jax.vmap(found)(*(jax.tree.map(lambda a: a[None].repeat(2, 0), (x, kernel))))
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], twice), theirs, rtol=1e-4, atol=1e-4)
