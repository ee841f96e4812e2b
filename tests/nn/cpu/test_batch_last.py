"""Depthwise convolutions and pools with the batch as the last axis."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.nn import plain_convolutions
from jaxunlearn.nn.cpu import batch_last


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*shape, low, high, seed=0):
    """Whole numbers from `low` to below `high`."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


SHAPES = [((3, 5, 4, 9), 3), ((1, 1, 6, 33), 5), ((2, 7, 3, 1), 3)]


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_depthwise(shape, size):
    x, kernel = normal(*shape), normal(size, size, shape[0], seed=1)
    g = normal(*shape, seed=2)

    def pulled(x, kernel):
        y, pull = jax.vjp(batch_last.depthwise, x, kernel)
        return y, pull(g)

    program = lambda: str(jax.make_jaxpr(lambda: pulled(x, kernel))())  # noqa: E731
    run = lambda: jax.jit(lambda x, kernel: pulled(x, kernel))(x, kernel)  # noqa: E731
    ours = run()
    with plain_convolutions():
        theirs = run()
        assert "feature_group_count" in program()  # XLA's own
    with plain_convolutions(depthwise=False):
        by_taps = run()
        assert "feature_group_count" not in program()
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(by_taps, theirs, rtol=1e-4, atol=1e-4)
    twice = jax.jit(jax.vmap(pulled))(np.stack([x] * 2), np.stack([kernel] * 2))
    last = jax.tree.map(lambda a: np.asarray(a)[1], twice)
    chex.assert_trees_all_close(last, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (2, 7, 5, 16)])
def test_equal_maxima_share_the_gradient_of_a_pool(shape):
    """Values of few kinds, so that most windows have several maxima; JAX's own derivative."""
    x = whole(*shape, low=0, high=3)
    weights = normal(shape[0], shape[1] // 2, shape[2] // 2, shape[3], seed=1)
    loss = lambda x: (weights * batch_last.max_pool(x)).sum()  # noqa: E731
    run = lambda: jax.jit(lambda x: jax.value_and_grad(loss)(x))(x)  # noqa: E731
    ours = run()
    with plain_convolutions():
        theirs = run()
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
    x, kernel = normal(n_in, height, width, n), normal(size, size, n_in, n_out, seed=1)
    shape = (n_out, (height - size + 1) // 2, (width - size + 1) // 2, n)
    g = normal(*shape, seed=2)

    def pulled(x, kernel):
        y, pull = jax.vjp(batch_last.conv_max_pool, x, kernel)
        return y, pull(g)

    run = lambda: jax.jit(lambda x, kernel: pulled(x, kernel))(x, kernel)  # noqa: E731
    ours = run()
    with plain_convolutions():
        theirs = run()
    assert ours[0].shape == shape
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    twice = jax.jit(jax.vmap(pulled))(np.stack([x] * 2), np.stack([kernel] * 2))
    last = jax.tree.map(lambda a: np.asarray(a)[1], twice)
    chex.assert_trees_all_close(last, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_in", [1, 5])
def test_equal_maxima_share_the_gradient_of_a_pooled_convolution(n_in):
    """Whole numbers, so that many maxima are equal and nothing is rounded."""
    x = whole(n_in, 9, 8, 8, low=0, high=2)
    kernel = whole(3, 3, n_in, 4, low=-1, high=2, seed=1)
    weights = whole(4, 3, 3, 8, low=-12, high=13, seed=2) * 12

    def loss(x, kernel, layer):
        y = layer(x, kernel)
        return (weights * y).sum(), y

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    ours = grad(x, kernel, batch_last.conv_max_pool)
    with plain_convolutions():
        theirs = grad(x, kernel, lambda x, k: batch_last.max_pool(batch_last.conv(x, k)))
        y = np.asarray(jax.jit(lambda x, k: batch_last.conv(x, k))(x, kernel))
    y = y[:, :6, :6].reshape(4, 3, 2, 3, 2, 8)
    assert ((y == y.max((2, 4), keepdims=True)).sum((2, 4)) > 1).mean() > 0.1
    chex.assert_trees_all_close(ours, theirs, atol=1e-3)


def test_how_a_pooled_convolution_is_computed(monkeypatch):
    """As one where it pays; apart, in tiles, by XLA's own, for the other cases."""
    kernel = normal(3, 3, 2, 3, seed=1)
    layer = batch_last.conv_max_pool

    def program(n, dtype=jnp.float32):
        shapes = (jax.ShapeDtypeStruct(s, dtype) for s in ((2, 10, 10, n), kernel.shape))
        return str(jax.make_jaxpr(lambda x, kernel: layer(x, kernel))(*shapes))

    assert "f32[3,4,4,4,8]" in program(8)  # the four pixels of a window apart
    for xla in (program(7), program(8, jnp.bfloat16)):
        assert "conv_general_dilated" in xla and "scan" not in xla
    with plain_convolutions():
        assert "conv_general_dilated" in program(8)
    x = normal(2, 10, 10, 8)
    run = lambda: jax.jit(lambda x, kernel: layer(x, kernel))(x, kernel)  # noqa: E731
    y = run()
    monkeypatch.setattr(batch_last, "_MOST", 0)
    assert "scan" in program(8)
    np.testing.assert_allclose(run(), y, rtol=1e-5, atol=1e-5)


def test_a_pooled_convolution_of_two_types():
    x = jnp.ones((2, 6, 6, 8), jnp.bfloat16)
    y = jax.jit(batch_last.conv_max_pool)(x, np.ones((3, 3, 2, 3), np.float32))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 18)
