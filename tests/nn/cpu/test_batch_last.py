"""Depthwise convolutions and pools with the batch as the last axis."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.nn import plain_convolutions
from jaxunlearn.nn.cpu import batch_last

SHAPES = [((3, 5, 4, 9), 3), ((1, 1, 6, 33), 5), ((2, 7, 3, 1), 3)]


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_depthwise(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (size, size, shape[0]))
    g = jax.random.normal(jax.random.key(2), shape)

    def found(x, kernel):
        y, pull = jax.vjp(batch_last.depthwise, x, kernel)
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
    loss = lambda x: (weights * batch_last.max_pool(x)).sum()  # noqa: E731
    ours = jax.value_and_grad(loss)(x)
    with plain_convolutions():
        theirs = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


POOLED = [  # channels in and out, height, width, images, size of the kernel
    (1, 10, 28, 28, 8, 3),
    (3, 4, 13, 12, 9, 3),
    (5, 4, 11, 9, 16, 3),
    (2, 3, 11, 12, 8, 5),
    (2, 3, 9, 10, 8, 4),  # even, which is done apart
    (6, 2, 6, 7, 8, 1),
    (6, 2, 8, 6, 3, 3),  # images that do not fill a vector
]


@pytest.mark.parametrize("sizes", POOLED, ids=str)
def test_conv_max_pool(sizes):
    """Value and both gradients are those of a convolution and a pool, apart and XLA's own."""
    n_in, n_out, height, width, n, size = sizes
    x = jax.random.normal(jax.random.key(0), (n_in, height, width, n))
    kernel = jax.random.normal(jax.random.key(1), (size, size, n_in, n_out))
    shape = (n_out, (height - size + 1) // 2, (width - size + 1) // 2, n)
    g = jax.random.normal(jax.random.key(2), shape)

    def found(x, kernel):
        y, pull = jax.vjp(batch_last.conv_max_pool, x, kernel)
        return y, pull(g)

    ours = jax.jit(lambda: found(x, kernel))()
    with plain_convolutions():
        theirs = jax.jit(lambda: found(x, kernel))()
    assert ours[0].shape == shape
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    twice = jax.vmap(found)(*(jax.tree.map(lambda a: a[None].repeat(2, 0), (x, kernel))))
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], twice), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_in", [1, 5])
def test_equal_maxima_share_the_gradient_of_a_pooled_convolution(n_in):
    """Whole numbers, so that many maxima are equal and nothing is rounded."""
    x = jax.random.randint(jax.random.key(0), (n_in, 9, 8, 8), 0, 2).astype(jnp.float32)
    kernel = jax.random.randint(jax.random.key(1), (3, 3, n_in, 4), -1, 2).astype(jnp.float32)
    weights = jax.random.randint(jax.random.key(2), (4, 3, 3, 8), -12, 13) * 12.0

    def loss(x, kernel, layer):
        y = layer(x, kernel)
        return (weights * y).sum(), y

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    ours = grad(x, kernel, batch_last.conv_max_pool)
    with plain_convolutions():
        theirs = grad(x, kernel, lambda x, k: batch_last.max_pool(batch_last.conv(x, k)))
        y = batch_last.conv(x, kernel)[:, :6, :6].reshape(4, 3, 2, 3, 2, 8)
    assert ((y == y.max((2, 4), keepdims=True)).sum((2, 4)) > 1).mean() > 0.1
    chex.assert_trees_all_close(ours, theirs, atol=1e-3)


def test_how_a_pooled_convolution_is_computed(monkeypatch):
    """As one where it pays; apart, in tiles, by XLA's own, for the other cases."""
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 3))
    layer = batch_last.conv_max_pool

    def program(n, dtype=jnp.float32):
        x = jnp.ones((2, 10, 10, n), dtype)
        return str(jax.make_jaxpr(lambda x: layer(x, kernel.astype(dtype)))(x))

    assert "f32[3,4,4,4,8]" in program(8)  # the four pixels of a window apart
    for xla in (program(7), program(8, jnp.bfloat16)):
        assert "conv_general_dilated" in xla and "scan" not in xla
    with plain_convolutions():
        assert "conv_general_dilated" in program(8)
    x = jax.random.normal(jax.random.key(0), (2, 10, 10, 8))
    y = layer(x, kernel)
    monkeypatch.setattr(batch_last, "_MOST", 0)
    assert "scan" in program(8)
    np.testing.assert_allclose(layer(x, kernel), y, rtol=1e-5, atol=1e-5)


def test_a_pooled_convolution_of_two_types():
    x = jnp.ones((2, 6, 6, 8), jnp.bfloat16)
    y = batch_last.conv_max_pool(x, jnp.ones((3, 3, 2, 3)))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 18)
