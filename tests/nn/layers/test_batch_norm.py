import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn
from jaxunlearn.core.model import RUNNING, Mixture, Statistics

X = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 2, 5)).astype(np.float32)
MEAN, VAR = X.mean((0, 1, 2)), X.var((0, 1, 2))


def test_training_normalises_and_remembers_the_unbiased_variance():
    layer = nn.BatchNorm(5, rngs=nnx.Rngs(0))
    y = np.asarray(layer(jnp.asarray(X), train=True))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], 0.1 * MEAN, rtol=1e-5)
    expected = 0.9 + 0.1 * X.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.var[...], expected, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_keeps_them():
    layer = nn.BatchNorm(2)
    layer.mean[...], layer.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 9.0])
    layer.scale[...], layer.bias[...] = jnp.array([2.0, 3.0]), jnp.array([0.5, -1.0])
    np.testing.assert_allclose(layer(jnp.array([[3.0, 5.0]])), [[2.5, 2.0]], rtol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [1.0, 2.0])
    np.testing.assert_array_equal(layer.var[...], [4.0, 9.0])


@pytest.mark.parametrize("source", ["batch", 0.0, 0.3, 1.0])
@pytest.mark.parametrize("update", [False, True])
def test_mixtures_and_updates_follow_the_formula(source, update):
    layer = nn.BatchNorm(5, momentum=0.25)
    running = np.linspace(1, 2, 5, dtype=np.float32), np.linspace(3, 5, 5, dtype=np.float32)
    layer.mean[...], layer.var[...] = map(jnp.asarray, running)
    y = layer(jnp.asarray(X), statistics=Statistics(source, update))
    alpha = 1.0 if source == "batch" else source
    mean, var = (alpha * b + (1 - alpha) * r for b, r in zip((MEAN, VAR), running, strict=True))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    new = running
    if update:
        new = 0.75 * running[0] + 0.25 * MEAN, 0.75 * running[1] + 0.25 * VAR * 24 / 23
    np.testing.assert_allclose(layer.mean[...], new[0], rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], new[1], rtol=1e-5)


def test_train_stands_for_statistics():
    x = jnp.asarray(X)
    for train, statistics in ((True, Statistics("batch", update=True)), (False, RUNNING)):
        one, other = nn.BatchNorm(5), nn.BatchNorm(5)
        np.testing.assert_array_equal(one(x, train), other(x, statistics=statistics))
        np.testing.assert_array_equal(one.var[...], other.var[...])


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1, float("nan")])
def test_a_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}; above 0 and at most 1"):
        nn.BatchNorm(3, momentum=momentum)


def test_names_are_those_of_flax():
    names = set(nnx.to_pure_dict(nnx.state(nn.BatchNorm(3))))
    assert names == set(nnx.to_pure_dict(nnx.state(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))))


def test_a_small_variance_beside_a_large_mean_keeps_its_digits():
    x = 1000 + np.random.default_rng(0).normal(0, 0.1, (512, 1)).astype(np.float32)
    layer = nn.BatchNorm(1)
    layer(jnp.asarray(x), train=True)
    expected = 0.9 + 0.1 * x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose((layer.var[...] - 0.9) / 0.1, (expected - 0.9) / 0.1, atol=1e-5)


def test_the_gradient_ignores_shifts():
    def loss(x):
        return jnp.sum(jnp.sin(nn.BatchNorm(5)(x, train=True)))

    np.testing.assert_allclose(np.asarray(jax.jit(jax.grad(loss))(X)).sum((0, 1, 2)), 0, atol=1e-4)


def test_one_value_per_channel_has_no_variance():
    for how in ({"train": True}, {"statistics": Statistics("batch")}):
        with pytest.raises(ValueError, match="1 value per channel"):
            nn.BatchNorm(3)(jnp.ones((1, 3)), **how)
    y = nn.BatchNorm(3)(jnp.ones((1, 3)), statistics=Statistics(0.5))  # 0.5 of the running ones
    np.testing.assert_allclose(y, 0.5 / np.sqrt(0.5 + 1e-5) * np.ones((1, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    "statistics", [Statistics("running", True), Statistics("Batch"), Statistics(2.0)]
)
def test_bad_statistics_of_a_layer_are_named(statistics):
    with pytest.raises(ValueError, match="statistics"):
        nn.BatchNorm(3)(np.ones((4, 3), np.float32), statistics=statistics)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("source", ["batch", 0.3, Mixture(0.3, unbiased=True)])
def test_a_mask_leaves_examples_out_of_the_statistics(axis, source):
    """Of masked examples the statistics are those of the rest alone, running ones too."""
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, (6, 4, 4, 3)).astype("float32"), np.arange(6) < 4
    turn = (lambda x: x) if axis == -1 else (lambda x: x.transpose(3, 1, 2, 0))
    masked, alone = nn.BatchNorm(3, axis=axis), nn.BatchNorm(3, axis=axis)
    y = masked(turn(x), statistics=Statistics(source, True, jnp.asarray(mask)))
    expected = alone(turn(x[:4]), statistics=Statistics(source, True))
    np.testing.assert_allclose(y[:4] if axis == -1 else y[..., :4], expected, atol=1e-5)
    for name in ("mean", "var"):
        kept, wanted = (getattr(layer, name)[...] for layer in (masked, alone))
        np.testing.assert_allclose(kept, wanted, rtol=1e-5)
    empty = nn.BatchNorm(3, axis=axis)
    y = empty(turn(x), statistics=Statistics(source, True, jnp.zeros(6, bool)))
    assert np.isfinite(y).all() and np.isfinite(empty.var[...]).all()


def test_mixtures_are_of_biased_or_unbiased_variances_and_may_be_kept():
    """Moving statistics (RoTTA's) are those normalised with, not the layer's momentum's."""
    mean, var, unbiased = X.mean((0, 1, 2)), X.var((0, 1, 2)), X.var((0, 1, 2), ddof=1)
    for kind, of_batch in ((Mixture(0.2), var), (Mixture(0.2, unbiased=True), unbiased)):
        y = nn.BatchNorm(X.shape[-1])(jnp.asarray(X), statistics=Statistics(kind))
        expected = (X - 0.2 * mean) / np.sqrt(0.2 * of_batch + 0.8 + 1e-5)
        np.testing.assert_allclose(y, expected, atol=1e-5)
    layer = nn.BatchNorm(X.shape[-1])
    layer(jnp.asarray(X), statistics=Statistics(Mixture(0.2, moving=True), True))
    np.testing.assert_allclose(layer.mean[...], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.2 * var + 0.8, rtol=1e-5)


def test_half_precision_comes_out_with_statistics_in_float32():
    x = jnp.asarray(X + 100, jnp.bfloat16)
    y = nn.BatchNorm(X.shape[-1])(x, train=True)
    wide = nn.BatchNorm(X.shape[-1])(x.astype(jnp.float32), train=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=0.01, atol=0.01)
