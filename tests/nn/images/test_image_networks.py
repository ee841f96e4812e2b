import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import nn
from jaxunlearn.core.model import Model
from jaxunlearn.nn.images._small import _blocks
from jaxunlearn.nn.layers.convolution import fan_out_normal, torch_default

CIFAR = (32, 32, 3)
KEY = jax.random.key(0)


def shapes(model):
    return jax.eval_shape(model.init, KEY)


@pytest.mark.parametrize(
    ("model", "size", "cost"),
    [
        (nn.resnet9(), 2_274_880, 291_308_800),
        (nn.wide_resnet(28, 10), 36_479_194, 5_243_328_768),
        (nn.wide_resnet(40, 2), 2_243_546, 327_599_360),
        (nn.wide_resnet(16, 2), 691_674, 101_106_944),
        (nn.wide_resnet(10, 2), 303_706, 44_483_840),
        (nn.wide_resnet(16, 1), 175_066, 26_657_408),
        (nn.wide_resnet(10, 1), 77_850, 12_501_632),
    ],
)
def test_parameters_and_multiply_adds(model, size, cost):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model)[0])) == size
    assert nn.multiply_adds(model, CIFAR) == cost


def test_the_same_network_is_the_same_model():
    assert nn.resnet9() is nn.resnet9()
    assert nn.wide_resnet(10, 1) is nn.wide_resnet(10, 1)
    assert nn.small_cnn(CIFAR, 10**6) is nn.small_cnn(CIFAR, 10**6)


@pytest.mark.parametrize("depth", [4, 12, 27])
def test_a_depth_that_is_not_6n_plus_4(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}; allowed is 6n"):
        nn.wide_resnet(depth, 1)


def test_a_width_below_1():
    with pytest.raises(ValueError, match="width is 0"):
        nn.wide_resnet(10, 0)


def test_features_of_a_wide_resnet_give_its_logits():
    model = nn.wide_resnet(10, 1, n_classes=7)
    # Compiling `init` would take longer than the rest.
    params, stats = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes(model))
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(model.apply, static_argnames="return_features")
    (logits, features), _ = apply(params, stats, x, return_features=True)
    assert features.shape == (2, 64)
    head = params["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, rtol=1e-5)
    alone = jax.eval_shape(model.apply, params, stats, x)[0]
    assert alone.shape == logits.shape


def test_initial_spread():
    shape = (3, 3, 64, 32)
    draw = lambda initializer: np.asarray(jax.jit(initializer, static_argnums=1)(KEY, shape))  # noqa: E731
    kernel = draw(torch_default)
    limit = (9 * 64) ** -0.5
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / 3**0.5, rtol=0.02)
    kernel = draw(fan_out_normal)
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 32)) ** 0.5, rtol=0.02)


@settings(max_examples=12, deadline=None)  # each traces two networks
@given(
    budget=st.integers(100_000, 10_000_000),
    shape=st.sampled_from([CIFAR, (28, 28, 1), (17, 20, 2), (8, 8, 1), (5, 9, 2), (3, 2, 1)]),
)
def test_small_cnn_is_the_widest_within_its_budget(budget, shape):
    model = nn.small_cnn(shape, budget)
    cost = nn.multiply_adds(model, shape)
    assert cost <= budget
    channels = [conv["kernel"].shape[-1] for conv in shapes(model)[0]["conv"].values()]
    assert channels == [channels[0] * factor for factor in (1, 2, 2)[: len(channels)]]
    width = channels[0]
    assert width < 8 or width % 8 == 0
    rows, columns, n_in = shape
    if min(shape[:2]) >= 16:
        rows, columns, n_in = -(-rows // 2), -(-columns // 2), 4 * n_in
    grow = 1 if width < 8 else 8
    wider = nn.cnn(
        (rows, columns, n_in), tuple((width + grow) * c // width for c in channels), batch_norm=True
    )
    assert nn.multiply_adds(wider, (rows, columns, n_in)) > budget


def test_small_cnn_at_a_million():
    model = nn.small_cnn(CIFAR, 10**6)
    assert nn.multiply_adds(model, CIFAR) == 886_016
    params, stats = shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17_002
    x = jax.ShapeDtypeStruct((2, *CIFAR), jnp.float32)
    assert jax.eval_shape(model.apply, params, stats, x)[0].shape == (2, 10)


def test_blocks_keep_every_pixel():
    x = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    blocks = np.asarray(jax.jit(_blocks)(x))
    assert blocks.shape == (2, 2, 3, 12)
    for i, j in ((0, 0), (3, 4), (2, 1)):
        part = 3 * (2 * (i % 2) + j % 2)
        np.testing.assert_array_equal(blocks[:, i // 2, j // 2, part : part + 3], x[:, i, j])
    np.testing.assert_array_equal(blocks[:, :, 2, 3:6], 0)  # the filled column


def test_small_cnn_names_the_least_budget():
    with pytest.raises(ValueError, match="multiply_adds is 1000; .* takes 29456"):
        nn.small_cnn(CIFAR, 1000)
    with pytest.raises(ValueError, match="at least 2"):
        nn.small_cnn((1, 8, 3), 10**6)


def model_of(function):
    """A model without parameters."""
    return Model(lambda key: ({}, {}), lambda params, stats, x: (function(x), stats))


def test_a_convolution_costs_the_same_as_a_matrix_product():
    kernel = jnp.ones((3, 3, 2, 5))

    def im2col(x):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        columns = [x[:, i : i + 7 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)]
        return jnp.concatenate(columns, -1) @ kernel.reshape(-1, 5)

    def plain(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=numbers
        )

    expected = 4 * 3 * 9 * 2 * 5
    for function in (im2col, plain, lambda x: nn.conv(x, kernel, 2)):
        assert nn.multiply_adds(model_of(function), (7, 5, 2)) == expected


def test_multiply_adds_inside_other_programs():
    weights = jnp.ones((3, 3))  # one product of [1, 3] with it is 9

    def product(x):
        return x @ weights

    with_vjp = jax.custom_vjp(product)
    with_vjp.defvjp(lambda x: (product(x), None), lambda _, g: (g,))
    with_jvp = jax.custom_jvp(product)
    with_jvp.defjvps(lambda g, y, x: g)
    for times, function in (
        (1, jax.jit(product)),
        (1, with_vjp),
        (1, with_jvp),
        (1, jax.checkpoint(product)),
        (4, lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, length=4)[0]),
        (5, lambda x: jax.lax.fori_loop(0, 5, lambda _, x: product(x), x)),
        (2, lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: product(product(x)), product, x)),
        (3, lambda x: jax.vmap(product)(jnp.stack([x] * 3))),
    ):
        assert nn.multiply_adds(model_of(function), (3,)) == 9 * times

    def endless(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, product, x)

    with pytest.raises(ValueError, match="while"):
        nn.multiply_adds(model_of(endless), (3,))


def test_normalised():
    mean, std = (0.5, 0.25), (0.5, 2.0)
    inner = model_of(lambda x: x)
    model = nn.normalised(inner, mean, std)
    assert model is nn.normalised(inner, list(mean), np.array(std))
    x = np.array([[[[255, 51]]]], np.uint8)
    expected = [[[[1.0, -0.025]]]]
    np.testing.assert_allclose(model.apply({}, {}, x)[0], expected, atol=1e-6)
    np.testing.assert_allclose(
        model.apply({}, {}, x.astype(np.float32) / 255)[0], expected, atol=1e-6
    )


def test_normalised_keeps_parameters_and_switches():
    inner = nn.wide_resnet(10, 1)
    model = nn.normalised(inner, (0.4,) * 3, (0.2,) * 3)
    assert model.init is inner.init
    params, stats = shapes(model)
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    (_, features), after = jax.eval_shape(
        lambda *args: model.apply(*args, train=True, return_features=True), params, stats, x
    )
    assert features.shape == (2, 64)
    assert jax.tree.structure(after) == jax.tree.structure(stats)


def test_errors_of_normalised():
    inner = model_of(lambda x: x)
    with pytest.raises(ValueError, match="mean has 2 channels and std 1"):
        nn.normalised(inner, (0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="std is .* positive"):
        nn.normalised(inner, (0.5,), (0.0,))
    model = nn.normalised(inner, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="for 1 channels"):
        model.apply({}, {}, jnp.ones((1, 2, 2, 3)))
    with pytest.raises(ValueError, match="x has dtype int32"):
        model.apply({}, {}, jnp.ones((1, 2, 2, 1), jnp.int32))
