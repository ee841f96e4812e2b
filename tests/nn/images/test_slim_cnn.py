"""Networks with BatchNorm under a budget: counts, and the fold that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.core import tree
from jaxunlearn.core.model import from_nnx

SHAPE = (18, 19, 2)
BUILD = {
    "slim": lambda **kind: nn.slim_cnn(SHAPE, (4, 5, 6), 3, **kind),
    "minimal": lambda **kind: nn.minimal_cnn(SHAPE, 3, **kind),
}


def size(model):
    return tree.size(jax.eval_shape(model.init, jax.random.key(0))[0])


def test_the_counts():
    assert size(nn.minimal_cnn((28, 28, 1))) == 4_862  # as its author says, BatchNorm included
    assert size(nn.slim_cnn((28, 28, 1), folded=True)) == 14_370
    assert size(nn.slim_cnn((32, 32, 3), (24, 48, 48, 64, 64, 64), folded=True)) == 18_562


def test_multiply_adds_count_depthwise_convolutions():
    pixels, a = [28**2, 14**2, 14**2, 7**2, 7**2], (24, 48, 48, 72, 64)
    separable = sum(n * (9 * i + i * j) for n, i, j in zip(pixels[1:], a[:-1], a[1:], strict=True))
    cost = nn.multiply_adds(nn.slim_cnn((28, 28, 1), folded=True), (28, 28, 1))
    assert cost == pixels[0] * 9 * a[0] + separable + a[-1] * 10


@pytest.fixture(scope="module", params=list(BUILD))
def trained(request):
    """A network whose every number is random, and images."""
    build, rng = BUILD[request.param], np.random.default_rng(0)
    like = jax.eval_shape(build().init, jax.random.key(0))
    draw = lambda w: rng.normal(0, w.size**-0.25, w.shape).astype(np.float32)  # noqa: E731
    params, stats = jax.tree.map(draw, like[0]), jax.tree.map(lambda w: np.abs(draw(w)), like[1])
    return build, params, stats, rng.uniform(size=(9, *SHAPE)).astype(np.float32)


def test_folded_it_says_the_same(trained):
    build, params, stats, x = trained
    folded = jax.jit(nn.fold_batch_norm)(params, stats)
    wanted, _ = jax.eval_shape(build(folded=True).init, jax.random.key(0))
    assert {n: w.shape for n, w in tree.named(folded).items()} == {
        n: w.shape for n, w in tree.named(wanted).items()
    }
    ours, _ = jax.jit(build(folded=True).apply)(folded, {}, x)
    theirs, _ = jax.jit(build().apply)(params, stats, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_all_lowerings_say_the_same(trained):
    build, params, stats, x = trained

    def loss(params):
        y, new = build().apply(params, stats, x, train=True, key=jax.random.key(2))
        return jnp.sum(y**2), new

    run = lambda: jax.jit(lambda p: jax.value_and_grad(loss, has_aux=True)(p))(params)  # noqa: E731
    ours = run()
    for depthwise in (True, False):
        with nn.plain_convolutions(depthwise):
            plain = run()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, plain
        )


def test_statistics_are_those_of_the_usual_layout():
    """BatchNorm over the first axis is that over the last one."""
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    first = from_nnx(lambda rngs: nn.BatchNorm(3, axis=0, rngs=rngs))
    last = from_nnx(lambda rngs: nn.BatchNorm(3, rngs=rngs))
    params, stats = first.init(jax.random.key(0))
    run = lambda model, x: jax.jit(lambda x: model.apply(params, stats, x, train=True))(x)  # noqa: E731
    y, new = run(first, x)
    z, other = run(last, np.moveaxis(x, 0, -1))
    np.testing.assert_allclose(np.moveaxis(y, 0, -1), z, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, other)


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match="sides of at least 4"):
        nn.slim_cnn((3, 9, 1))
    for channels, message in (((), "channels is"), ((0, 4), "channels is 0"), ((2.5,), "2.5")):
        with pytest.raises(ValueError, match=message):
            nn.slim_cnn((8, 8, 1), channels)
    with pytest.raises(ValueError, match="n_classes is 0"):
        nn.slim_cnn((8, 8, 1), n_classes=0)
    assert nn.slim_cnn([8, 8, 1], [3, 4]) is nn.slim_cnn((8, 8, 1), (3, 4))
    with pytest.raises(ValueError, match="sides of at least 18"):
        nn.minimal_cnn((17, 28, 1))


def test_images_of_other_sizes(trained):
    build, params, stats, x = trained
    for bad in (x[:, :-1], x[..., :1], x[0], x.astype(np.uint8)):
        with pytest.raises(ValueError, match=r"x is .*; floats \[B, 18, 19, 2\] are needed"):
            build().apply(params, stats, bad)
