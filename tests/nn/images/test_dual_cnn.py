"""The lightweight CNN: counts, the two branches, the surgery."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.core import tree
from jaxunlearn.nn import multiply_adds, plain_convolutions
from jaxunlearn.nn.images import dual_cnn

SMALL = (12, 13, 2)


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def drawn(model, seed=0):
    """Parameters, biases too: those of zero would hide one that is not copied."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(model.init, jax.random.key(0))[0]
    return jax.tree.map(lambda w: rng.uniform(-0.3, 0.5, w.shape).astype(np.float32), like)


@functools.cache
def compiled(model):
    switches = ("train", "start_at", "stop_at")
    return jax.jit(lambda *args, **how: model.apply(*args, **how)[0], static_argnames=switches)


@pytest.fixture(scope="module")
def trained():
    pair = dual_cnn.build(SMALL, n_classes=3, filters=4, hidden=5)
    return pair, *(drawn(model, i) for i, model in enumerate(pair))


def test_a_head_is_a_convolution_as_large_as_its_map():
    """Of 2 x 3 pixels here; written without the layers of this package."""
    pair = dual_cnn.build((14, 19, 2), n_classes=3, filters=4)
    params, images = drawn(pair.fused), uniform(9, 14, 19, 2)

    @jax.jit
    def plainly(layers, x):
        for name in ("conv_1", "conv_2", "head"):
            kernel = layers[name]["kernel"]
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layers[name]["bias"])
            if name != "head":
                x = nnx.max_pool(x, (2, 2), (2, 2))
        return x[:, 0, 0]

    heads = compiled(pair.fused)(params, {}, images, stop_at="heads")
    expected = plainly(params["branch_1"], images)
    assert (np.asarray(expected) > 0).any()
    np.testing.assert_allclose(heads[:, :3], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def images():
    return uniform(9, *SMALL, seed=3)


@pytest.mark.parametrize(
    ("shape", "dual", "fused", "macs"),
    [((28, 28, 1), 13_860, 14_862, 568_240), ((32, 32, 3), 18_620, 19_622, 1_109_760)],
)
def test_the_counts_of_the_paper(shape, dual, fused, macs):
    pair = dual_cnn.build(shape)
    sizes = [tree.size(jax.eval_shape(model.init, jax.random.key(0))[0]) for model in pair]
    assert sizes == [dual, fused]
    assert multiply_adds(pair.fused, shape) == macs


@settings(max_examples=12)  # each builds two networks
@given(
    st.integers(10, 40),
    st.integers(10, 40),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 9),
)
def test_the_formula_holds_for_any_shape(height, width, channels, classes, filters, hidden):
    sizes = ((height, width, channels), classes, filters, hidden)
    pair = dual_cnn.build(*sizes)
    counted = [tree.size(jax.eval_shape(model.init, jax.random.key(0))[0]) for model in pair]
    assert tuple(counted) == dual_cnn.n_parameters(*sizes)


@pytest.mark.parametrize("branch", [0, 1])
def test_after_the_surgery_a_head_says_what_its_branch_said(trained, images, branch):
    pair, dual, fused = trained
    logits = compiled(pair.dual)(dual, {}, images, images)
    heads = compiled(pair.fused)(dual_cnn.fuse(dual, fused), {}, images, stop_at="heads")
    said = np.asarray(heads)[:, 3 * branch : 3 * branch + 3]
    np.testing.assert_allclose(said, np.maximum(logits[branch], 0), atol=1e-6)
    assert (said > 0).any()


def test_the_authors_code_leaves_the_second_head_as_it_was_drawn(trained):
    _, dual, fused = trained
    cut = dual_cnn.fuse(dual, fused, heads=("branch_1",))
    drawn, copied = fused["branch_2"]["head"]["kernel"], cut["branch_2"]["head"]["kernel"]
    np.testing.assert_array_equal(copied, drawn)
    for name in ("conv_1", "conv_2"):
        np.testing.assert_array_equal(
            cut["branch_2"][name]["kernel"], dual["branch_2"][name]["kernel"]
        )
    linear = dual["branch_1"]["head"]["kernel"]
    np.testing.assert_array_equal(cut["branch_1"]["head"]["kernel"].reshape(linear.shape), linear)


def test_surgery_leaves_its_arguments_alone(trained):
    _, dual, fused = trained
    before = tree.digest((dual, fused))
    dual_cnn.fuse(dual, fused)
    assert tree.digest((dual, fused)) == before


def test_branches_do_not_know_each_other(trained, images):
    pair, dual, _ = trained
    loss = lambda params: pair.dual.apply(params, {}, images, images)[0][1].sum()  # noqa: E731
    grads = jax.device_get(jax.jit(jax.grad(loss))(dual))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["branch_1"]))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads["branch_2"]))


@pytest.mark.parametrize("batch", [1, 7, 9])
def test_all_lowerings_say_the_same(trained, batch):
    pair, dual, fused = trained
    params = dual_cnn.fuse(dual, fused)
    x = uniform(batch, *SMALL, seed=4)

    def loss(params):
        return jnp.sum(pair.fused.apply(params, {}, x)[0] ** 2)

    run = lambda: jax.jit(lambda p: jax.value_and_grad(loss)(p))(params)  # noqa: E731
    ours = run()
    with plain_convolutions():
        plain = run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, plain)


def test_above_the_heads_it_goes_on_where_it_stopped(trained, images):
    pair, dual, fused = trained
    params = dual_cnn.fuse(dual, fused)
    run = compiled(pair.fused)
    heads = run(params, {}, images, stop_at="heads")
    above = run(params, {}, heads, start_at="heads")
    np.testing.assert_array_equal(above, run(params, {}, images))


def test_dropout_is_for_training(trained, images):
    pair, dual, fused = trained
    params = dual_cnn.fuse(dual, fused)
    apply = lambda **kind: compiled(pair.fused)(params, {}, images, **kind)  # noqa: E731
    drawn = [apply(train=True, key=jax.random.key(i)) for i in range(2)]
    assert not np.array_equal(*drawn)
    np.testing.assert_array_equal(apply(), apply(key=jax.random.key(0)))


def test_bad_surgery(trained):
    _, dual, fused = trained
    with pytest.raises(ValueError, match="heads has 'branch_3'; branch_1 and branch_2"):
        dual_cnn.fuse(dual, fused, heads=("branch_3",))
    with pytest.raises(ValueError, match="heads is 'branch_1'; a tuple of names"):
        dual_cnn.fuse(dual, fused, heads="branch_1")
    with pytest.raises(ValueError, match="dual_params has no 'branch_2'; it holds branch_1"):
        dual_cnn.fuse({"branch_1": dual["branch_1"]}, fused)
    other = dual_cnn.build(SMALL, n_classes=4, filters=4, hidden=5).fused
    with pytest.raises(ValueError, match="branch_1/head has .* both must come from one `build`"):
        dual_cnn.fuse(dual, drawn(other))


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((8, 8, 1), {}, r"input_shape is \(8, 8, 1\).*at\s+least 10 pixels"),
        ((28, 28), {}, r"input_shape is \(28, 28\)"),
        ((28.0, 28, 1), {}, "input_shape is"),
        (28, {}, "input_shape is 28"),
        ((28, 28, 1), {"filters": 0}, "filters is 0"),
        ((28, 28, 1), {"filters": 2.5}, "filters is 2.5"),
        ((28, 28, 1), {"n_classes": 0}, "n_classes is 0"),
        ((28, 28, 1), {"n_classes": "10"}, "n_classes is '10'"),
        ((28, 28, 1), {"hidden": 0}, "hidden is 0"),
    ],
)
def test_bad_sizes(shape, options, message):
    with pytest.raises(ValueError, match=message):
        dual_cnn.build(shape, **options)


def test_images_of_other_sizes():
    """Also those whose maps would have the same size."""
    pair = dual_cnn.build([28, 28, 1])
    assert pair is dual_cnn.build((28, 28, 1))
    params = drawn(pair.fused)
    for bad in ((2, 29, 29, 1), (2, 28, 27, 1), (2, 28, 28, 3), (28, 28, 1)):
        with pytest.raises(ValueError, match=r"x is float32\[.*floats \[B, 28, 28, 1\] are needed"):
            pair.fused.apply(params, {}, np.zeros(bad, np.float32))
    with pytest.raises(ValueError, match=r"x is uint8.*as_float"):
        pair.fused.apply(params, {}, np.zeros((2, 28, 28, 1), np.uint8))


@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("kinds", [("float32", "float16"), ("bfloat16", "float32")], ids=str)
def test_types_are_promoted_whatever_the_batch(kinds, batch):
    of_params, of_images = kinds
    model = dual_cnn.build(SMALL).fused
    cast = lambda tree, kind: jax.tree.map(lambda w: w.astype(jnp.dtype(kind)), tree)  # noqa: E731
    params, x = cast(drawn(model), of_params), cast(uniform(batch, *SMALL), of_images)
    logits = compiled(model)(params, {}, x)
    expected = compiled(model)(cast(params, "float32"), {}, cast(x, "float32"))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_there_is_nothing_else_to_start_or_stop_at():
    model = dual_cnn.build(SMALL).fused
    params = drawn(model)
    for options in ({"stop_at": "head"}, {"start_at": "middle"}):
        with pytest.raises(ValueError, match="image or heads, and heads or logits, are allowed"):
            model.apply(params, {}, uniform(1, *SMALL), **options)
