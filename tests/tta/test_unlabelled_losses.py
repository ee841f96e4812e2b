import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.tta import losses

X = np.sin(1 + np.arange(20).reshape(4, 5))
T = 2 * np.cos(2 + np.arange(20).reshape(4, 5))
Y = 1.5 * np.sin(3 + 2 * np.arange(20).reshape(4, 5))
VIEWS = np.sin(0.3 * np.arange(4)[:, None, None] + 1.1 * np.arange(3)[:, None] + 0.7 * np.arange(6))


def test_symmetric_cross_entropy_has_the_values_of_an_independent_computation():
    values = losses.symmetric_cross_entropy(X, T)
    np.testing.assert_allclose(values, [3.01037304, 2.49092516, 2.96601383, 2.52852218], rtol=1e-5)
    both = 0.5 * values + 0.5 * losses.symmetric_cross_entropy(Y, T)
    np.testing.assert_allclose(jnp.mean(both), 2.559210299, rtol=1e-5)
    np.testing.assert_allclose(
        losses.symmetric_cross_entropy(X, T, alpha=0.0), losses.soft_cross_entropy(X, T), rtol=1e-6
    )
    np.testing.assert_allclose(losses.entropy(X), losses.symmetric_cross_entropy(X, X), rtol=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 8.623393562), (1.0, 2.692512532)])
def test_contrastive_loss_has_the_values_of_a_brute_force_loop(temperature, expected):
    value = losses.contrastive(VIEWS, temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    scaled = losses.contrastive(VIEWS * np.array([3.0, 0.2, 7.0])[:, None], temperature)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)  # it normalises


def test_rows_that_are_not_kept_leave_the_contrastive_loss_as_it_is():
    kept = np.array([True, True, False, True])
    rest = losses.contrastive(VIEWS[kept])
    with_others = np.where(kept[:, None, None], VIEWS, 1e3)
    np.testing.assert_allclose(losses.contrastive(with_others, kept=kept), rest, rtol=1e-5)


@pytest.mark.parametrize("n_kept", [0, 1, 4])
@pytest.mark.parametrize("views", [VIEWS, np.ones_like(VIEWS), np.zeros_like(VIEWS)])
def test_contrastive_loss_and_its_gradient_are_finite(views, n_kept):
    kept = np.arange(4) < n_kept
    value, grad = jax.value_and_grad(lambda v: losses.contrastive(v, kept=kept))(jnp.array(views))
    assert np.isfinite(value) and np.isfinite(grad).all()
    if n_kept == 0:
        assert value == 0 and not grad.any()


def test_likelihood_ratios_and_generalised_cross_entropies_are_those_of_their_formulas():
    logits = np.array([[9.0, 0.0, 0.0], [0.3, 0.1, -0.2]])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    clipped = np.minimum(p, 0.99)
    expected = -(clipped * np.log(clipped / (1 - clipped) + 1e-5)).sum(1)
    np.testing.assert_allclose(losses.soft_likelihood_ratio(logits), expected, rtol=1e-5)
    expected = (1 - p.max(1) ** 0.8) / 0.8
    np.testing.assert_allclose(losses.generalised_cross_entropy(logits), expected, atol=1e-6)
