import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import nn
from jaxunlearn.nn.cpu import winograd

NUMBERS = ("NHWC", "HWIO", "NHWC")


def theirs(x, kernel, stride, padding, groups=1):
    options = {"dimension_numbers": NUMBERS, "feature_group_count": groups}
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, **options
    )


def draw(shape, kernel_shape, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape).astype(np.float32),
        (rng.normal(size=kernel_shape) / np.sqrt(np.prod(kernel_shape[:3]))).astype(np.float32),
    )


def close(ours, expected, tolerance=3e-6):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def both(convolve, x, kernel, g):
    """The output and both gradients, as one program."""

    def run(x, kernel, g):
        y, back = jax.vjp(convolve, x, kernel)
        return y, back(g)

    return jax.jit(run)(x, kernel, g)


def check(shape, kernel_shape, stride, padding, tolerance, groups=1):
    x, kernel = draw(shape, kernel_shape)
    pad = kernel_shape[0] // 2 if padding is None else padding
    y = jax.eval_shape(lambda x, k: theirs(x, k, stride, pad, groups), x, kernel)
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    ours = both(lambda x, k: nn.conv(x, k, stride, padding, groups), x, kernel, g)
    expected = both(lambda x, k: theirs(x, k, stride, pad, groups), x, kernel, g)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        close(mine, other, tolerance)


@settings(max_examples=8, deadline=None)  # every shape is compiled
@given(
    batch=st.integers(1, 6),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    n_in=st.sampled_from([1, 3, 32]),
    size=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.sampled_from([None, 0, 1, 2]),
)
def test_values_and_gradients_are_those_of_lax(batch, height, width, n_in, size, stride, padding):
    check((batch, height, width, n_in), (size, size, n_in, 5), stride, padding, 3e-6)


@pytest.mark.parametrize(("n_in", "stride"), [(4, 1), (48, 2), (64, 1)])  # of a group
def test_groups(n_in, stride):
    check((3, 6, 7, 2 * n_in), (3, 3, n_in, 2 * n_in), stride, 1, 1e-5, groups=2)
    layer = nn.Conv(2 * n_in, 6, 1, groups=2, use_bias=False, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (1, 1, n_in, 6)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (2, 1), (3, 0)])
def test_a_kernel_of_one_pixel(stride, padding):
    check((3, 7, 6, 40), (1, 1, 40, 33), stride, padding, 1e-5)


@pytest.mark.parametrize(
    ("shape", "padding"),
    [((4, 8, 8, 64), 1), ((3, 7, 9, 64), 0), ((1, 2, 5, 64), 2), ((3, 40, 30, 64), 1)],  # 3 chunks
)
def test_winograd_and_its_gradients(shape, padding):
    check(shape, (3, 3, 64, 48), 1, padding, 1e-5)
    x, kernel = draw(shape, (3, 3, 64, 48))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    y = jax.jit(lambda x, k: nn.conv(x, k, 1, padding))(x, kernel)
    transformed = lambda x, k: winograd.conv(x, winograd.transformed(k))  # noqa: E731
    close(y, jax.jit(transformed)(padded, kernel), 1e-6)
    text = str(jax.make_jaxpr(lambda x, k: nn.conv(x, k, 1, padding))(x, kernel))
    assert "conv_general_dilated" not in text  # this really is the path taken


def losses(stride):
    """The same function of x and kernel through our convolution and through XLA's."""

    def loss(convolve):
        return lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2)

    return loss(lambda x, k: nn.conv(x, k, stride)), loss(lambda x, k: theirs(x, k, stride, 1))


@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(3, 5, 2), (64, 48, 1)])
def test_under_the_transformations(n_in, n_out, stride):
    x, kernel = draw((4, 8, 8, n_in), (3, 3, n_in, n_out))
    ours, lax = losses(stride)

    def many(f, x, kernel):  # a model axis on the kernel
        kernels = jnp.stack([kernel, 2 * kernel, -kernel])
        return jax.vmap(jax.grad(f, 1), (None, 0))(x, kernels)

    def per_example(f, x, kernel):
        return jax.vmap(lambda row: jax.grad(f, 1)(row[None], kernel))(x)

    def second(f, x, kernel):  # a gradient of a gradient
        inner = jax.grad(f, 1)
        return jax.grad(lambda k: jnp.sum(inner(x, k) * jnp.cos(k)))(kernel)

    def steps(f, x, kernel):
        descend = lambda k, _: (k - 1e-3 * jax.grad(f, 1)(x, k), None)  # noqa: E731
        return jax.lax.scan(descend, kernel, None, 3)[0]

    def rematerialised(f, x, kernel):
        return jax.grad(jax.checkpoint(f), 1)(x, kernel)

    for changed in (many, per_example, second, steps, rematerialised):
        run = jax.jit(changed, static_argnums=0)
        close(run(ours, x, kernel), run(lax, x, kernel))


def test_forward_derivatives_with_plain_convolutions():
    x, kernel = draw((2, 6, 6, 3), (3, 3, 3, 4))
    ours, lax = losses(2)
    tangent = lambda f: jax.jit(lambda *a: jax.jvp(f, a, a)[1])(x, kernel)  # noqa: E731
    with nn.plain_convolutions():
        tangents = tangent(ours)
    np.testing.assert_array_equal(tangents, tangent(lax))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ours, (x, kernel), (x, kernel))


def test_accelerators_take_the_convolution_of_xla(monkeypatch):
    x, kernel = draw((2, 6, 6, 64), (3, 3, 64, 64))
    on_cpu = str(jax.make_jaxpr(nn.conv)(x, kernel))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    elsewhere = jax.make_jaxpr(lambda x, k: nn.conv(x, k))(x, kernel)  # traced anew
    assert "custom_vjp" in on_cpu
    assert [e.primitive.name for e in elsewhere.eqns] == ["conv_general_dilated"]


def test_no_convolution_of_a_step_keeps_a_foreign_layout():
    """XLA's CPU convolution is 5 times slower, 50 in a loop, unless its layout is the plain one."""
    x, kernel = draw((8, 8, 8, 64), (3, 3, 64, 64))
    text = jax.jit(jax.grad(losses(2)[0], (0, 1))).lower(x, kernel).compile().as_text()
    layouts = {line.split("dim_labels=")[1].split(",")[0] for line in text.splitlines()
               if "dim_labels=" in line}  # fmt: skip
    assert layouts <= {"b01f_01io->b01f"}


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "message"),
    [
        ((3, 3, 2, 4), 1, None, r"kernel is \[3, 3, 2, 4\]; \[k, k, 3, F\] fits"),
        ((3, 5, 3, 4), 1, None, "kernel is"),
        ((3, 3, 3, 4), 0, None, "stride is 0"),
        ((3, 3, 3, 4), 1, -1, "padding -1"),
        ((9, 9, 3, 4), 1, 0, "room for a 9x9 kernel on 6x6"),
    ],
)
def test_bad_arguments(kernel, stride, padding, message):
    with pytest.raises(ValueError, match=message):
        nn.conv(jnp.ones((2, 6, 6, 3)), jnp.ones(kernel), stride, padding)


@pytest.mark.parametrize("groups", [0, 2, 3, 4])
def test_groups_divide_the_channels(groups):
    with pytest.raises(ValueError, match=f"groups is {groups}; it must divide"):
        nn.conv(jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 1, 4)), groups=groups)


@pytest.mark.parametrize("n_in", [3, 31, 32, 64])
@pytest.mark.parametrize("n_out", [33, 64])
def test_around_the_thresholds_of_the_lowerings(n_in, n_out):
    check((2, 6, 7, n_in), (3, 3, n_in, n_out), 1, 1, 1e-5)


@pytest.mark.parametrize("n_in", [3, 64])
def test_half_precision_is_that_of_xla(n_in):
    x, kernel = (a.astype(jnp.bfloat16) for a in draw((4, 8, 8, n_in), (3, 3, n_in, 64)))
    square = lambda convolve: lambda x, k: jnp.sum(jnp.square(convolve(x, k)))  # noqa: E731
    ours = jax.jit(jax.value_and_grad(square(nn.conv), (0, 1)))(x, kernel)
    lax = jax.jit(jax.value_and_grad(square(lambda x, k: theirs(x, k, 1, 1)), (0, 1)))(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, ours, lax)


@pytest.mark.parametrize("n_in", [3, 64])
def test_no_images_give_no_outputs(n_in):
    assert nn.conv(jnp.zeros((0, 8, 8, n_in)), jnp.zeros((3, 3, n_in, 64))).shape == (0, 8, 8, 64)


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        (jnp.zeros((8, 8, 3)), jnp.zeros((3, 3, 3, 4)), r"x is \[8, 8, 3\]"),
        (jnp.zeros((1, 8, 8, 3), jnp.bfloat16), jnp.zeros((3, 3, 3, 4)), "x is bfloat16"),
        (jnp.zeros((1, 8, 8, 64), jnp.uint8), jnp.zeros((3, 3, 64, 64)), "x is uint8"),
    ],
)
def test_arguments_that_do_not_fit_each_other(x, kernel, message):
    with pytest.raises(ValueError, match=message):
        nn.conv(x, kernel)
