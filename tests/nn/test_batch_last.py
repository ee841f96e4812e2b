"""Depthwise convolutions and pools with the batch as the last axis."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.nn import _batch_last, plain_convolutions

SHAPES = [((3, 5, 4, 9), 3), ((1, 1, 6, 33), 5), ((2, 7, 3, 1), 3)]


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_depthwise(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (size, size, shape[0]))
    g = jax.random.normal(jax.random.key(2), shape)

    def found(x, kernel):
        y, pull = jax.vjp(_batch_last.depthwise, x, kernel)
        return y, pull(g)

    program = lambda: str(jax.make_jaxpr(lambda: found(x, kernel))())  # noqa: E731
    ours = jax.jit(lambda: found(x, kernel))()
    with plain_convolutions():
        theirs = jax.jit(lambda: found(x, kernel))()
        assert "feature_group_count" in program()  # XLA's own
    with plain_convolutions(depthwise=False):
        by_taps = jax.jit(lambda: found(x, kernel))()
        assert "feature_group_count" not in program()
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(by_taps, theirs, rtol=1e-4, atol=1e-4)
    twice = jax.vmap(found)(*(jax.tree.map(lambda a: a[None].repeat(2, 0), (x, kernel))))
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], twice), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (2, 7, 5, 16)])
def test_equal_maxima_share_the_gradient_of_a_pool(shape):
    """Values of few kinds, so that most windows have several maxima; JAX's own derivative."""
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(jnp.float32)
    weights = jax.random.normal(
        jax.random.key(1), (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    )
    loss = lambda x: (weights * _batch_last.max_pool(x)).sum()  # noqa: E731
    ours = jax.value_and_grad(loss)(x)
    with plain_convolutions():
        theirs = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
