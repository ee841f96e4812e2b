import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn
from jaxunlearn.core import tree
from jaxunlearn.nn.layers.convolution import (
    avg_pool,
    global_max_pool,
    max_pool,
    overlapping_max_pool,
)
from jaxunlearn.nn.layers.norms import GroupNorm


def test_global_poolings():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(global_max_pool(x), np.asarray(x).max((1, 2)))
    np.testing.assert_allclose(avg_pool(x), np.asarray(x).mean((1, 2)), atol=1e-6)


def test_max_pool_is_that_of_flax():
    for shape in ((2, 4, 6, 3), (2, 5, 7, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected = jax.jit(lambda x: nnx.max_pool(x, (2, 2), (2, 2)))(x)
        np.testing.assert_array_equal(jax.jit(max_pool)(x), expected)


def test_overlapping_max_pool_and_its_gradient_are_those_of_flax():
    flax = functools.partial(
        nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
    )

    @jax.jit
    def both(x):
        square = lambda pool: lambda x: jnp.sum(pool(x) ** 2)  # noqa: E731
        pools = (overlapping_max_pool, flax)
        return [(pool(x), jax.grad(square(pool))(x)) for pool in pools]

    for shape in ((2, 4, 6, 3), (2, 5, 7, 3), (1, 1, 2, 1)):
        ours, theirs = both(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_group_norm():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 4, 5, 6)).astype(np.float32)
    layer = GroupNorm(6, 3)
    layer.scale[...], layer.bias[...] = 2 * jnp.ones(6), jnp.arange(6.0)
    y = (np.asarray(layer(x)) - np.arange(6)) / 2
    for group in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = x[..., group]
        mean, var = (it((1, 2, 3), keepdims=True) for it in (part.mean, part.var))
        np.testing.assert_allclose(y[..., group], (part - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    with pytest.raises(ValueError, match="groups is 4; it must divide the 6 channels"):
        GroupNorm(6, 4)


@pytest.mark.parametrize(
    ("model", "shape", "size"),
    [
        (nn.mlp(64, (64,), 10), (5, 8, 8, 1), 64 * 64 + 64 + 64 * 10 + 10),
        (nn.mlp(12, (), 3), (5, 12), 12 * 3 + 3),
        (nn.cnn((8, 8, 1)), (5, 8, 8, 1), 9 * 16 + 16 + 9 * 16 * 32 + 32 + 4 * 32 * 10 + 10),
        (
            nn.cnn((9, 8, 3), (4,), 5, batch_norm=True),
            (2, 9, 8, 3),
            9 * 3 * 4 + 8 + 16 * 4 * 5 + 5,
        ),
    ],
)
def test_sizes_and_shapes(model, shape, size):
    @jax.jit
    def run(key):
        params, stats = model.init(key)
        return params, stats, *model.apply(params, stats, jnp.ones(shape))

    params, stats, logits, after = run(jax.random.key(0))
    assert tree.size(params) == size
    assert logits.shape[0] == shape[0] and logits.ndim == 2
    assert set(tree.named(after)) == set(tree.named(stats))


def test_the_same_network_is_the_same_model():
    assert nn.mlp(4, (8,), 3) is nn.mlp(4, [np.int64(8)], n_classes=3)
    assert nn.cnn((8, 8, 1)) is nn.cnn([8, 8, 1], [16, 32], 10, False)
    assert nn.small_cnn((28, 28, 1), 10**6) is nn.small_cnn([28, 28, 1], 10**6)
    assert nn.wide_resnet(10, 1) is nn.wide_resnet(depth=10, width=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.mlp(0), "n_inputs is 0"),
        (lambda: nn.mlp((8, 8, 1)), "n_inputs is .8, 8, 1.; a whole number"),
        (lambda: nn.mlp(4, 8), "hidden is 8; a tuple"),
        (lambda: nn.mlp(4, (8.0,)), "hidden is 8.0; a whole number"),
        (lambda: nn.mlp(4, "8"), "hidden is '8'; a tuple"),
        (lambda: nn.mlp(4, (8,), 0), "n_classes is 0"),
        (lambda: nn.mlp(4, (8,), True), "n_classes is True"),
        (lambda: nn.cnn((8, 8)), "input_shape is"),
        (lambda: nn.cnn((8, 8, 1), (4, 0)), "channels is 0"),
        (lambda: nn.cnn((8, 8, 1), 4), "channels is 4"),
        (lambda: nn.small_cnn((28, 28, 1), 1e6), "multiply_adds is 1000000.0"),
        (lambda: nn.resnet9(0), "n_classes is 0"),
        (lambda: nn.wide_resnet(16, "2"), "width is '2'"),
        (lambda: nn.wide_resnet(16.5, 2), "depth is 16.5"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_poolings_leave_something():
    with pytest.raises(ValueError, match="poolings leave nothing of 4x8"):
        nn.cnn((4, 8, 1), (2, 2, 2))
