import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn


def test_training_normalises_and_remembers_the_unbiased_variance():
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 2, 5)).astype(np.float32)
    layer = nn.BatchNorm(5, rngs=nnx.Rngs(0))
    y = np.asarray(layer(jnp.asarray(x), train=True))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    expected = 0.9 + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.var[...], expected, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_keeps_them():
    layer = nn.BatchNorm(2)
    layer.mean[...], layer.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 9.0])
    layer.scale[...], layer.bias[...] = jnp.array([2.0, 3.0]), jnp.array([0.5, -1.0])
    np.testing.assert_allclose(layer(jnp.array([[3.0, 5.0]])), [[2.5, 2.0]], rtol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [1.0, 2.0])
    np.testing.assert_array_equal(layer.var[...], [4.0, 9.0])


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
    x = jax.random.normal(jax.random.key(0), (6, 2, 2, 3))

    def loss(x):
        return jnp.sum(jnp.sin(nn.BatchNorm(3)(x, train=True)))

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x).sum((0, 1, 2)), 0, atol=1e-4)


def test_one_value_per_channel_has_no_variance():
    with pytest.raises(ValueError, match="1 value per channel"):
        nn.BatchNorm(3)(jnp.ones((1, 3)), train=True)
