"""Linear models, trained in stages and unlearned by ascent."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.cli.paths import draw_theory
from jaxunlearn.theory import _linear_retain, linear, linear_study

D, K, LR = 30, 5, 0.02


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def loop(theta, x, y, lr, steps):
    for _ in range(steps):
        theta = theta + 2 * lr / len(x) * x.T @ (x @ theta - y)
    return theta


def close(found, wanted, tolerance=1e-12):
    assert np.asarray(found).dtype == np.float64
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


@given(n=st.sampled_from([1, 12, 29, 30, 60]), mu=st.floats(0.01, 100), seed=st.integers(0, 50))
def test_a_stage_solves_the_proximal_ridge(n, mu, seed):
    theta, x, y = drawn(D, (n, D), n, seed=seed)
    wanted = np.linalg.solve(x.T @ x + mu * np.eye(D), x.T @ y + mu * theta)
    close(linear.stage(theta, x, y, mu), wanted, 1e-11)


def test_an_order_runs_its_stages_one_after_the_other():
    theta, x, y = drawn(D, (3, 4, D), (3, 4))
    stages = [linear.Data(x[i], y[i], 0.5 + i) for i in range(3)]
    wanted = theta
    for i in (2, 0, 2):
        wanted = linear.stage(wanted, x[i], y[i], 0.5 + i)
    np.testing.assert_array_equal(linear.run_order(theta, stages, (2, 0, 2)), wanted)
    np.testing.assert_array_equal(linear.run_order(theta, stages, ()), theta)


def test_orders_commute_only_if_their_rows_are_orthogonal():
    x, y = drawn((8, D), 8)
    rows = np.linalg.qr(x.T)[0].T
    orthogonal = [linear.Data(rows[:4], y[:4]), linear.Data(rows[4:], y[4:])]
    oblique = [linear.Data(x[:4], y[:4]), linear.Data(x[4:], y[4:])]
    for stages, same in ((orthogonal, True), (oblique, False)):
        a, b = (linear.run_order(np.zeros(D), stages, order) for order in ((0, 1), (1, 0)))
        assert np.allclose(a, b) == same


@given(k=st.sampled_from([1, 5, 30, 40]), steps=st.integers(0, 60), seed=st.integers(0, 50))
def test_ascent_is_the_explicit_loop(k, steps, seed):
    theta, x, y = drawn(D, (k, D), k, seed=seed)  # up to k > d: dependent rows
    close(linear.ascend(theta, x, y, LR, steps), loop(theta, x, y, LR, steps))


@given(first=st.integers(0, 40), then=st.integers(0, 40), seed=st.integers(0, 50))
def test_ascent_composes(first, then, seed):
    theta, x, y = drawn(D, (K, D), K, seed=seed)
    middle = linear.ascend(theta, x, y, LR, first)
    close(linear.ascend(middle, x, y, LR, then), linear.ascend(theta, x, y, LR, first + then))


def test_a_trajectory_is_its_steps_one_by_one():
    theta, x, y = drawn(D, (K, D), K)
    steps = np.array([[0, 1], [7, 20]])
    path = linear.ascend(theta, x, y, LR, steps)
    assert path.shape == (2, 2, D)
    for at in np.ndindex(2, 2):
        close(path[at], linear.ascend(theta, x, y, LR, steps[at]), 1e-14)
    np.testing.assert_array_equal(path[0, 0], theta)


def test_the_difference_forgets_the_targets():
    a, b, x, y = drawn(D, D, (K, D), K)
    gap = linear.ascend(a, x, y, LR, 30) - linear.ascend(b, x, y, LR, 30)
    move = np.eye(D) + 2 * LR / K * x.T @ x
    close(gap, np.linalg.matrix_power(move, 30) @ (a - b))
    close(linear.difference(a - b, x, LR, 30), gap)


def test_distance_is_the_mean_squared_difference_of_predictions():
    a, b, x = drawn((3, D), D, (7, D))
    found = linear.distance(a, b, x)
    close(found, np.square((a - b) @ x.T).mean(1))
    assert linear.distance(b, b, x) == 0
    close(linear.mse(a, x, x @ b), found)


@functools.cache
def report():
    return linear_study.report(n_problems=200, n_recency=50)


def test_the_bound_is_never_violated_and_growth_is_at_least_as_fast():
    found = report()["divergence"]
    assert found["problems"] == 200
    assert found["violations"] == 0
    assert found["slope_ratio"][0] >= 1
    assert found["closed_form_error"] <= 1e-12
    assert 0 < found["holds_from_step"][0] <= found["holds_from_step"][1] < 50


def test_no_retrained_model_is_near_both_orders():
    assert report()["divergence"]["midpoint_within_eps"] == 0


def test_the_constants_are_those_of_the_paper():
    a, b, x, test = drawn(D, D, (K, D), (9, D))
    delta, p = a - b, x.T @ np.linalg.inv(x @ x.T) @ x
    inside, m = p @ delta, 2 * LR / K * x.T @ x
    rho = inside @ m @ inside / (inside @ inside)
    sigma = np.linalg.svd(test @ p)[1][K - 1]  # the smallest that is not zero
    c = np.linalg.norm(test, 2) * np.linalg.norm(delta - inside)
    t0 = np.ceil(np.log(2 * c / (sigma * np.linalg.norm(inside))) / np.log(1 + rho))
    steps = np.array([0, 3, 80])
    found = linear.divergence_bound(a, b, x, test, LR, steps)
    close(found.bound, sigma**2 * (inside @ inside) * (1 + rho) ** (2 * steps) / (4 * 9))
    assert found.holds_from_step == t0
    for eps in (1e-9, 1e3, 1e9):
        step = np.log(16 * 9 * eps / (sigma**2 * (inside @ inside))) / (2 * np.log(1 + rho))
        found = linear.impossible_from_step(a, b, x, test, LR, eps)
        assert found == max(np.ceil(step), t0)


@given(eps=st.floats(1e-3, 1e6), seed=st.integers(0, 50))
def test_after_the_corollarys_step_one_model_is_far_from_any_other(eps, seed):
    a, b, x, y, test, other = drawn(D, D, (K, D), K, (9, D), D, seed=seed)
    step = max(linear.impossible_from_step(a, b, x, test, LR, eps), 0)
    a, b = (linear.ascend(theta, x, y, LR, step) for theta in (a, b))
    for third in ((a + b) / 2, a, a + (b - a) * 0.3, other):
        assert max(linear.distance(theta, third, test) for theta in (a, b)) > eps


def test_models_that_agree_are_promised_nothing():
    a, x, test = drawn(D, (K, D), (9, D))
    found = linear.divergence_bound(a, a, x, test, LR, [0, 9])
    np.testing.assert_array_equal(found.bound, [0, 0])
    assert found.holds_from_step == np.inf
    assert linear.impossible_from_step(a, a, x, test, LR, 1.0) == np.inf


def test_the_bound_may_hold_from_the_start():
    a, b, x, test = drawn(3, 3, (3, 3), (9, 3))  # k = d: nothing is outside of the span
    assert linear.divergence_bound(a, b, x, test, LR, 0).holds_from_step <= 0


@given(weight=st.floats(0, 20), n=st.sampled_from([1, 10, 40]), seed=st.integers(0, 50))
def test_the_retain_set_enters_the_recursion(weight, n, seed):
    delta, x, retain = drawn(D, (K, D), (n, D), seed=seed)
    lr = 0.002
    move = np.eye(D) + 2 * lr / K * x.T @ x - weight * 2 * lr / n * retain.T @ retain
    path = linear.difference(delta, x, lr, [0, 1, 25], retain, weight)
    np.testing.assert_array_equal(path[0], delta)
    close(path[1], move @ delta)
    close(path[2], np.linalg.matrix_power(move, 25) @ delta)
    # The criterion, and the rate: all directions have their part of a random difference.
    change = np.linalg.eigvalsh(move)
    found = linear.growth_rate(delta, x, lr, retain, weight)
    np.testing.assert_allclose(found, np.log(np.abs(change).max()), atol=1e-12)


def test_the_rate_is_that_of_a_long_run():
    delta, x, retain = drawn(D, (K, D), (10, D))
    for weight in (0.0, 1.0, 10.0):
        late = linear.difference(delta, x, 0.005, [1000, 1001], retain, weight)
        slope = np.log(np.linalg.norm(late[1]) / np.linalg.norm(late[0]))
        found = linear.growth_rate(delta, x, 0.005, retain, weight)
        np.testing.assert_allclose(slope, found, rtol=1e-5)


def test_only_directions_in_which_the_models_differ_count():
    (x,) = drawn((2, D))
    rows = np.linalg.qr(x.T)[0].T
    forget, retain = rows[:1], rows[1:]
    np.testing.assert_allclose(
        linear.growth_rate(rows[0], forget, LR, retain, 1.0), np.log1p(2 * LR)
    )
    np.testing.assert_allclose(
        linear.growth_rate(rows[1], forget, LR, retain, 1.0), np.log1p(-2 * LR)
    )
    elsewhere = np.linalg.svd(rows)[2][-1]
    assert linear.growth_rate(elsewhere, forget, LR, retain, 1.0) == 0
    assert linear.growth_rate(np.zeros(D), forget, LR, retain, 1.0) == -np.inf
    # A step too long for the retain set: |1 - 2 lr weight| > 1.
    np.testing.assert_allclose(linear.growth_rate(rows[1], forget, LR, retain, 2.5 / LR), np.log(4))


@given(weight=st.floats(0, 1e4), seed=st.integers(0, 50))
def test_no_weight_stops_divergence_unless_forget_rows_are_mixtures_of_retain_rows(weight, seed):
    delta, forget, retain, mixture = drawn(D, (K, D), (10, D), (K, 10), seed=seed)
    lr = 1e-7  # stable for the retain set at any of these weights
    assert linear.growth_rate(delta, forget, lr, retain, weight) > 0
    stops = 10 / K * np.linalg.norm(mixture, 2) ** 2
    grows = linear.growth_rate(delta, mixture @ retain, lr, retain, weight) > 0
    assert grows == (weight < stops) or np.isclose(weight, stops)


def test_a_phase_diagram_is_its_points():
    delta, forget, retain, test = drawn((2, D), (2, K, D), (10, D), (7, D))
    lrs, weights = [0.001, 0.01, 0.02], [0.0, 0.5, 2.0, 5.0]
    found = linear.phase_diagram(delta, forget, retain, test, lrs, weights, 15)
    assert found.rate.shape == found.distance.shape == (2, 3, 4)
    for i, j, w in np.ndindex(2, 3, 4):
        how = (retain, weights[w])
        np.testing.assert_allclose(
            found.rate[i, j, w], linear.growth_rate(delta[i], forget[i], lrs[j], *how), 1e-10
        )
        end = linear.difference(delta[i], forget[i], lrs[j], 15, *how)
        np.testing.assert_allclose(
            found.distance[i, j, w], linear.distance(end, np.zeros(D), test), 1e-10
        )


def test_scaled_rows_beside_zeros_are_a_smaller_forget_set():
    delta, forget = drawn(D, (K, D))
    fewer = np.concatenate([forget[:2], np.zeros((K - 2, D))]) * np.sqrt(K / 2)
    np.testing.assert_allclose(
        linear.growth_rate(delta, fewer, LR), linear.growth_rate(delta, forget[:2], LR)
    )


def test_the_last_stage_is_forgotten_least():
    found = report()["recency"]
    assert found["last_is_slowest"] >= 49
    scores = np.array(found["forget_score"])
    assert scores.shape == np.shape(found["retain_damage"]) == (50, 4)
    # The first seed again, by hand.
    x, y = linear_study.draw_sets(0)
    theta, order = np.zeros(400), (0, 3, 1, 2)
    for i in order:
        theta = np.linalg.solve(x[i].T @ x[i] + np.eye(400), x[i].T @ y[i] + theta)
    end = loop(theta, x[3], y[3], 1e-3, 30)
    errors = [np.square(np.einsum("snd,d->sn", x, t) - y).mean(1) for t in (theta, end)]
    np.testing.assert_allclose(scores[0, 1], (errors[1] - errors[0])[3], rtol=1e-6)


def test_the_phases_are_as_predicted_and_drawn(tmp_path):
    found = report()["phases"]
    rate = np.array(found["overlap"]["rate"])
    assert (rate[:-1] > 0).all()
    below = np.array(found["overlap"]["retain_weight"]) < found["overlap"]["stops_at"]
    np.testing.assert_array_equal(rate[-1] > 0, below)
    assert (np.diff(found["size"]["rate"], axis=0) < 0).any()
    assert (np.diff(found["size"]["rate"], axis=1) > 0).all()
    draw_theory(json.loads(json.dumps(report())), tmp_path / "theory.png")
    assert (tmp_path / "theory.png").stat().st_size > 10_000


def test_other_numbers_run_the_same_programs():
    a, b, x, y, test = drawn(D, D, (K, D), K, (9, D))
    programs = [
        (linear._stage, lambda s: linear.stage(s * a, x, y, s)),
        (linear._ascend, lambda s: linear.ascend(s * a, x, y, s * LR, [s, 2 * s])),
        (linear._divergence_bound, lambda s: linear.divergence_bound(a, b, x, test, s * LR, s)),
        (
            linear._impossible_from_step,
            lambda s: linear.impossible_from_step(a, b, x, test, s * LR, s),
        ),
        (_linear_retain._growth_rate, lambda s: linear.growth_rate(a, x, s * LR, test, s)),
        (
            _linear_retain._phase_diagram,
            lambda s: linear.phase_diagram([a, b], [x, x], test, test, [s * LR], [s], s),
        ),
    ]
    for program, call in programs:
        call(1)
        size = program._cache_size()
        call(2)
        assert program._cache_size() == size


def test_transformations_work_in_float64_and_are_refused_in_float32():
    theta, x, y = drawn(D, (K, D), K)
    lrs = np.array([0.01, 0.02])
    many = jax.vmap(lambda lr: linear.ascend(theta, x, y, lr, 20))
    with pytest.raises(ValueError, match="ascend: .* under jax.enable_x64"):
        many(lrs)
    with jax.enable_x64(True):
        found = jax.jit(many)(lrs)
        slope = jax.grad(lambda lr: linear.ascend(theta, x, y, lr, 20) @ theta)(0.01)
    for one, lr in zip(np.asarray(found), lrs, strict=True):
        close(one, linear.ascend(theta, x, y, lr, 20), 1e-13)
    near = [linear.ascend(theta, x, y, lr, 20) @ theta for lr in (0.01 - 1e-6, 0.01 + 1e-6)]
    np.testing.assert_allclose(slope, (near[1] - near[0]) / 2e-6, rtol=1e-6)


def test_results_stay_float64_whoever_asks():
    theta, x, y = drawn(D, (K, D), K)
    found = linear.stage(jnp.asarray(theta, jnp.float32), x, y, 1)
    assert isinstance(found, np.ndarray)
    assert (found - found).dtype == np.float64
    with jax.enable_x64(True):
        assert isinstance(linear.stage(theta, x, y, 1), jax.Array)


A, B, X, Y, TEST = drawn(D, D, (K, D), K, (9, D))
TWICE = np.concatenate([X, X[:1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.stage(A, X, Y, 0.0), "mu is 0.0; it must be positive"),
        (lambda: linear.stage([A], X, Y, 1.0), r"theta is \[1, 30\]"),
        (lambda: linear.stage(A, X[:, :3], Y, 1.0), r"x is \[5, 3\]; .* \[n, 30\]"),
        (lambda: linear.stage(A, X, Y[:3], 1.0), r"x is \[5, 30\] and y \[3\]"),
        (lambda: linear.run_order(A, [linear.Data(X, Y)], (0, 1)), r"order is \[0, 1\]; .* 0 to 0"),
        (lambda: linear.ascend(A, X, Y, -1.0, 3), "lr is -1.0"),
        (lambda: linear.ascend(A, X, Y, 1.0, [3, -1]), r"steps is \[3, -1\]"),
        (lambda: linear.ascend(A, X, Y, 1.0, 0.5), "steps is 0.5"),
        (lambda: linear.ascend(A, X[:0], Y[:0], 1.0, 1), r"x_forget is \[0, 30\]"),
        (lambda: linear.distance(A, B[:3], X), r"theta_a is \[30\] and theta_b \[3\]"),
        (lambda: linear.distance(1.0, B, X), "theta_a is a number"),
        (lambda: linear.divergence_bound(A, B[:3], X, TEST, LR, 1), r"theta_b \[3\]"),
        (
            lambda: linear.divergence_bound(A[:3], B[:3], X[:, :3], TEST[:, :3], LR, 1),
            r"x_forget is \[5, 3\]; the theorem needs as many rows as columns at most",
        ),
        (lambda: linear.divergence_bound(A, B, X, TEST[:4], LR, 1), r"x_test is \[4, 30\]; .* 5"),
        (lambda: linear.divergence_bound(A, B, TWICE, TEST, LR, 1), "6 rows of rank 5"),
        (lambda: linear.divergence_bound(A, B, X, TEST, LR, -1), "steps is -1"),
        (lambda: linear.impossible_from_step(A, B, X, TEST, LR, 0.0), "eps is 0.0"),
        (lambda: linear.difference(A, X, LR, 1, None, 2.0), "retain_weight is 2.0; without"),
        (lambda: linear.growth_rate(A, X, LR, TEST, -2.0), "retain_weight is -2.0; it must be 0"),
        (
            lambda: linear.phase_diagram([A], [X, X], TEST, TEST, [LR], [0.0], 1),
            r"delta is \[1, 30\] and x_forget \[2, 5, 30\]",
        ),
        (
            lambda: linear.phase_diagram([A], [X], TEST, TEST, [LR], [0.0], [1, 2]),
            r"steps \[2\]; two lists and one number",
        ),
        (lambda: linear_study.report(0), "n_problems is 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
