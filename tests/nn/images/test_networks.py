import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn
from jaxunlearn.core import tree
from jaxunlearn.nn.layers.convolution import avg_pool, global_max_pool, max_pool


def test_global_poolings():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(global_max_pool(x), np.asarray(x).max((1, 2)))
    np.testing.assert_allclose(avg_pool(x), np.asarray(x).mean((1, 2)), atol=1e-6)


def test_max_pool_is_that_of_flax():
    for shape in ((2, 4, 6, 3), (2, 5, 7, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected = jax.jit(lambda x: nnx.max_pool(x, (2, 2), (2, 2)))(x)
        np.testing.assert_array_equal(jax.jit(max_pool)(x), expected)


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
