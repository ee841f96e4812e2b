import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from jaxunlearn.core import losses


@given(st.sampled_from([2, 3, 12]), st.integers(0, 10_000), st.sampled_from([1.0, 30.0, 1e4]))
def test_margins_are_log_odds(n_classes, seed, scale):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(3, 5, n_classes)) * scale).astype(np.float32)
    labels = rng.integers(0, n_classes, 5)
    exact = np.empty((3, 5))
    for index in np.ndindex(3, 5):
        row, label = logits[index].astype(np.float64), labels[index[1]]
        exact[index] = row[label] - logsumexp(np.delete(row, label))
    got = losses.margins(logits, labels)
    assert got.shape == (3, 5) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=2e-6 * scale)


def test_margins_of_two_classes_are_differences():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_array_equal(losses.margins(logits, jnp.array([0, 0])), [2e4, -2e4])


def test_margins_give_the_loss():
    logits = jax.random.normal(jax.random.key(0), (7, 5)) * 4
    labels = jnp.arange(7) % 5
    np.testing.assert_allclose(
        jax.nn.softplus(-losses.margins(logits, labels)),
        losses.cross_entropy(logits, labels),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 1)), np.zeros(3, int), "K >= 2"),
        (np.zeros(()), np.zeros((), int), "K >= 2"),
        (np.zeros((3, 2)), np.zeros(3), "integers"),
    ],
)
def test_margins_refuse(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        losses.margins(logits, labels)


def test_margins_of_a_label_outside_are_nan():
    got = losses.margins(np.zeros((3, 4), np.float32), np.array([-1, 4, 3]))
    np.testing.assert_array_equal(np.isnan(got), [True, True, False])


def test_kl_divergence_is_zero_only_at_the_teacher():
    teacher = jax.random.normal(jax.random.key(0), (6, 4))
    student = teacher + jax.random.normal(jax.random.key(1), (6, 4))
    for temperature in (1.0, 4.0):
        chex.assert_trees_all_close(
            losses.kl_divergence(teacher + 3.0, teacher, temperature), jnp.zeros(6), atol=1e-5
        )
        assert (losses.kl_divergence(student, teacher, temperature) > 0).all()
    p, q = jax.nn.softmax(teacher / 2), jax.nn.softmax(student / 2)
    np.testing.assert_allclose(
        losses.kl_divergence(student, teacher, 2.0), 4 * (p * jnp.log(p / q)).sum(-1), rtol=1e-4
    )


def test_squared_error():
    np.testing.assert_allclose(losses.squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2))), 5)
