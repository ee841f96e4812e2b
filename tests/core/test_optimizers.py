"""Keras' optimizers; their parity with Keras itself is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.core import optimizers


def test_nadam_by_hand():
    """Two steps of the formula in the docstring, in float64 of NumPy."""
    lr, b1, b2, eps = 0.1, 0.9, 0.999, 1e-7
    grads = [np.array([0.5, -2.0]), np.array([-1.0, 0.25])]
    w, m, v, product = np.array([1.0, 2.0]), 0.0, 0.0, 1.0
    momentum = lambda t: b1 * (1 - 0.5 * 0.96**t)  # noqa: E731
    for t, g in enumerate(grads, 1):
        product *= momentum(t)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat = momentum(t + 1) * m / (1 - product * momentum(t + 1))
        m_hat = m_hat + (1 - momentum(t)) * g / (1 - product)
        w = w - lr * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)
    ours = _after(optimizers.keras_nadam(lr), [1.0, 2.0], grads)
    np.testing.assert_allclose(ours, w, rtol=1e-5)
    assert not np.allclose(_after(optax.nadam(lr), [1.0, 2.0], grads), w, rtol=1e-3)


def test_decay_is_decoupled():
    grads = [np.array([1.0, 0.0]), np.array([0.0, 0.0])]
    ours = _after(optimizers.keras_sgd(0.1, 0.0, 0.5, nesterov=False), [1.0, 2.0], grads)
    np.testing.assert_allclose(ours, [(0.95 - 0.1) * 0.95, 2 * 0.95**2], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_with_momentum_is_that_of_optax_without_decay(nesterov):
    rng = np.random.default_rng(0)
    grads = list(rng.normal(size=(20, 3)))
    ours = _after(optimizers.keras_sgd(0.1, 0.9, nesterov=nesterov), [0.0] * 3, grads)
    theirs = _after(optax.sgd(0.1, 0.9, nesterov=nesterov), [0.0] * 3, grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [optimizers.keras_nadam, optimizers.keras_sgd])
def test_rates_may_be_swept_and_holes_stay_holes(make):
    grads = {"a": jnp.ones(3), "b": None}

    def once(rate):
        optimizer = make(rate)
        params = {"a": jnp.ones(3), "b": None}
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return updates

    swept = jax.vmap(once)(jnp.array([0.1, 0.2]))
    assert swept["b"] is None
    np.testing.assert_allclose(2 * swept["a"][0], swept["a"][1], rtol=1e-5)


@pytest.mark.parametrize("make", [optimizers.keras_nadam, optimizers.keras_sgd])
def test_states_can_be_donated_and_keep_their_type(make):
    """Also with rates that are arrays, as `optax.inject_hyperparams` passes them."""
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    optimizer = make(jnp.float32(0.1), jnp.float32(0.9))
    state = optimizer.init(params)
    kinds = jax.tree.map(lambda leaf: leaf.dtype, state)
    update = jax.jit(optimizer.update, donate_argnums=1)
    updates, state = update(params, state, params)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == kinds
    assert updates["a"].dtype == jnp.bfloat16


def _after(optimizer, start, grads):
    params = jnp.array(start)
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    return params
