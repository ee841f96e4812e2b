"""Forgetting in ridge regression."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.theory import ridge


def drawn(n=40, d=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x @ rng.normal(size=d) + rng.normal(size=n)


@given(size=st.integers(1, 30), lam=st.floats(0.01, 10), seed=st.integers(0, 100))
def test_exact_deletion_is_refitting(size, lam, seed):
    x, y = drawn(seed=seed)
    model = ridge.fit(x, y, lam)
    forget = np.random.default_rng(seed).choice(40, size, replace=False)
    keep = np.setdiff1d(np.arange(40), forget)
    wanted = ridge.fit(x[keep], y[keep], lam).theta
    np.testing.assert_allclose(ridge.delete(model, forget), wanted, atol=1e-10)


def test_leverage_sums_exact_effects_of_single_points_and_jackknife_their_first_order():
    x, y = drawn()
    model, forget = ridge.fit(x, y, 1.0), np.array([3, 17, 20])
    single = sum(ridge.delete(model, np.array([i])) - model.theta for i in forget)
    np.testing.assert_allclose(ridge.delete(model, forget, "leverage") - model.theta, single)
    # First order in the points' weights: a small weight is as good as a derivative.
    weights = np.ones(40)
    weights[forget] -= 1e-6
    hessian = (x * weights[:, None]).T @ x + np.eye(8)
    slope = (np.linalg.solve(hessian, (x * weights[:, None]).T @ y) - model.theta) / 1e-6
    np.testing.assert_allclose(
        ridge.delete(model, forget, "jackknife") - model.theta, slope, rtol=1e-4
    )


@pytest.mark.parametrize("attribution", ["leverage", "jackknife"])
def test_the_datamodel_predicts_what_its_deletion_gives(attribution):
    x, y = drawn()
    model, forget = ridge.fit(x, y, 1.0), np.array([3, 17, 20])
    predicted = x @ model.theta - ridge.datamodel(model, attribution)[forget].sum(0)
    np.testing.assert_allclose(predicted, x @ ridge.delete(model, forget, attribution))


def test_gradients_are_those_of_their_losses():
    x, y = drawn()
    model, rows, theta = ridge.fit(x, y, 0.7), np.array([1, 5, 6]), np.linspace(-1, 1, 8)
    targets = np.cos(np.arange(40))

    def error(theta, wanted):
        return np.square(x[rows] @ theta - wanted[rows]).sum() / 2 / len(rows)

    for gradient, loss in (
        (ridge.matching(model, targets), lambda t: error(t, targets)),
        (ridge.training(model, 40), lambda t: error(t, y) + 0.7 / 40 * (t @ t) / 2),
        (ridge.ascent(model), lambda t: -error(t, y)),
    ):
        slopes = [(loss(theta + e) - loss(theta - e)) / 2e-5 for e in 1e-5 * np.eye(8)]
        np.testing.assert_allclose(gradient(theta, rows), slopes, rtol=1e-6)


@pytest.mark.parametrize("replace", [True, False])
def test_matching_reaches_the_oracle_and_training_a_floor(replace):
    x, y = drawn(200, 10)
    model, keep = ridge.fit(x, y, 1.0), np.arange(5, 200)
    oracle = ridge.delete(model, np.arange(5))
    how = {"step": 0.05, "epochs": 40, "batch_size": 10, "seed": 0, "replace": replace}
    path = ridge.descend(ridge.matching(model, x @ oracle), model.theta, np.arange(200), **how)
    errors = ridge.relative_error(path, oracle, model.theta)
    assert errors.shape == (41,)
    assert errors[0] == 1
    assert errors[-1] < 1e-10
    path = ridge.descend(ridge.training(model, len(keep)), model.theta, keep, **how)
    assert ridge.relative_error(path, oracle, model.theta)[-1] > 0.01


def test_divergence_stops_at_the_last_finite_parameters():
    x, y = drawn()
    model = ridge.fit(x, y, 1.0)
    path = ridge.descend(
        ridge.ascent(model), model.theta, np.arange(40), step=50.0, epochs=100, batch_size=4, seed=0
    )
    assert path.shape == (101, 8)
    assert np.isfinite(path).all()


OTHER: Any = "x"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridge.fit(*drawn(), 0.0), "lam is 0.0"),
        (lambda: ridge.fit(drawn()[0], np.ones(3), 1.0), r"y \[3\]"),
        (
            lambda: ridge.delete(ridge.fit(*drawn(), 1.0), np.array([0]), OTHER),
            "attribution is 'x'",
        ),
        (lambda: ridge.datamodel(ridge.fit(*drawn(), 1.0), "exact"), "attribution is 'exact'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
