"""Regression of outputs on subset masks."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.attribution import datamodels


def planted(n_members, n, n_targets, noise=0.5, density=0.1, seed=0):
    """Masks, outputs of a sparse linear datamodel with noise, and its weights."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n_members, n)) < 0.5
    weights = rng.normal(size=(n, n_targets)) * (rng.random((n, n_targets)) < density)
    return masks, masks @ weights + 7 + noise * rng.normal(size=(n_members, n_targets)), weights


def cosine(a, b):
    return (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-30)


@pytest.mark.parametrize("method", ["ridge", "lasso"])
def test_a_planted_datamodel_is_recovered(method):
    masks, outputs, weights = planted(2000, 60, 8, noise=0.2)
    found = datamodels.fit(masks, outputs, method=method)
    present = np.abs(weights).sum(0) > 0
    assert cosine(found.weights, weights)[present].min() > 0.99
    fresh = np.random.default_rng(1).random((100, 60)) < 0.5
    assert np.abs(found.predict(fresh) - fresh @ weights - 7).max() < 0.2
    assert (found.penalty > 0).all()


@pytest.mark.parametrize("method", ["ridge", "lasso", "difference"])
@pytest.mark.parametrize("members", [80, 20])  # more members than points, and fewer
def test_the_effect_in_blocks_is_that_of_all_weights(method, members, tmp_path):
    masks, outputs, _ = planted(members, 30, 11)
    np.save(tmp_path / "outputs.npy", outputs)
    mapped = np.load(tmp_path / "outputs.npy", mmap_mode="r")
    forget, seen = np.array([4, 0, 17]), []
    found = datamodels.effect(masks, mapped, forget, method=method, block=4, callback=seen.append)
    whole = datamodels.fit(masks, outputs, method=method).effect(forget)
    # The lasso is solved to a tolerance.
    np.testing.assert_allclose(found, whole, atol=1e-3 if method == "lasso" else 1e-10)
    assert seen == [4, 8, 11]


def test_the_effect_checks_before_it_fits():
    with pytest.raises(ValueError, match="index 6"):
        datamodels.effect(MASKS, NAN, np.array([6]))
    with pytest.raises(ValueError, match="member 7 on target 1 is nan"):
        datamodels.effect(MASKS, NAN, np.array([2]), block=1)
    with pytest.raises(ValueError, match="block is 0"):
        datamodels.effect(MASKS, OUTPUTS, np.array([2]), block=0)


def test_differences_in_means():
    masks, outputs, _ = planted(300, 12, 3)
    found = datamodels.fit(masks, outputs, method="difference")
    for i in range(12):
        wanted = outputs[masks[:, i]].mean(0) - outputs[~masks[:, i]].mean(0)
        np.testing.assert_allclose(found.weights[i], wanted, rtol=1e-9)
    assert (found.penalty == 0).all()
    l1 = datamodels.noise_penalty(datamodels.Statistics.of(masks, outputs))
    shrunk = datamodels.fit(masks, outputs, method="difference", l1=l1)
    std = masks.std(0)[:, None]
    before, after = found.weights * std, shrunk.weights * std
    np.testing.assert_allclose(after, np.sign(before) * np.maximum(np.abs(before) - l1, 0))
    assert (after == 0).any()
    assert (after != 0).any()


@settings(deadline=None, max_examples=15)
@given(
    n_members=st.integers(5, 60), n=st.integers(2, 40), l1=st.floats(1e-3, 1.0), seed=st.integers(0)
)
def test_the_lasso_meets_its_optimality_conditions(n_members, n, l1, seed):
    masks, outputs, _ = planted(n_members, n, 3, seed=seed)
    outputs = (outputs - outputs.mean(0)) / outputs.std(0)
    found = datamodels.fit(masks, outputs, method="lasso", l1=l1)
    std = masks.std(0)
    x = (masks - masks.mean(0)) / np.where(std > 0, std, 1)
    weights = found.weights * std[:, None]
    gradient = x.T @ (found.predict(masks) - outputs) / n_members
    slack = 2e-4 * max(l1, 1e-2)
    assert (np.abs(gradient) <= l1 + slack).all()
    on_support = weights != 0
    np.testing.assert_allclose(gradient[on_support], -l1 * np.sign(weights[on_support]), atol=slack)


def test_the_largest_penalty_of_the_path_gives_no_weights():
    masks, outputs, _ = planted(100, 20, 4)
    x = (masks - masks.mean(0)) / masks.std(0)
    largest = np.abs(x.T @ (outputs - outputs.mean(0))).max(0) / len(masks)
    assert (datamodels.fit(masks, outputs, method="lasso", l1=1.0001 * largest).weights == 0).all()
    found = datamodels.fit(masks, outputs, method="lasso", l1=0.99 * largest)
    assert ((found.weights != 0).sum(0) >= 1).all()


@pytest.mark.parametrize(("n_members", "n"), [(80, 30), (30, 80)])
def test_the_chosen_ridge_penalty_is_best_left_out_one_by_one(n_members, n):
    masks, outputs, _ = planted(n_members, n, 2)
    found = datamodels.fit(masks, outputs)
    path = np.logspace(-3, 3, 13)
    errors = np.zeros((len(path), 2))
    x = (masks - masks.mean(0)) / masks.std(0)
    for row, l2 in enumerate(path):
        for out in range(n_members):
            rest = np.arange(n_members) != out
            centre, mean = x[rest].mean(0), outputs[rest].mean(0)
            a = (x[rest] - centre).T @ (x[rest] - centre) + n_members * l2 * np.eye(n)
            w = np.linalg.solve(a, (x[rest] - centre).T @ (outputs[rest] - mean))
            errors[row] += np.square(outputs[out] - mean - (x[out] - centre) @ w)
    np.testing.assert_allclose(found.penalty, path[errors.argmin(0)])


@pytest.mark.parametrize("method", ["ridge", "lasso", "difference"])
def test_points_in_all_or_no_subsets_weigh_nothing(method):
    masks, outputs, _ = planted(60, 10, 3)
    masks[:, 2], masks[:, 5] = True, False
    found = datamodels.fit(masks, outputs, method=method)
    assert (found.weights[[2, 5]] == 0).all()
    assert np.isfinite(found.weights).all()
    assert np.isfinite(found.intercept).all()


@pytest.mark.parametrize(
    ("method", "penalty"), [("ridge", {"l2": 0.3}), ("lasso", {"l1": 0.1}), ("difference", {})]
)
def test_streamed_statistics_give_the_same(method, penalty):
    masks, outputs, _ = planted(150, 20, 4)
    outputs = outputs + 1e4  # a large mean costs no digits
    streamed = datamodels.Statistics.of(masks[:7], outputs[:7])
    for at in range(7, 150, 50):
        streamed.add(masks[at : at + 50], outputs[at : at + 50])
    found = datamodels.fit_statistics(streamed, method=method, **penalty)
    wanted = datamodels.fit(masks, outputs, method=method, **penalty)
    tolerance = 1e-4 if method == "lasso" else 1e-9
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.predict(masks), wanted.predict(masks), atol=100 * tolerance)
    whole = datamodels.Statistics.of(masks, outputs)
    assert streamed.count == whole.count
    np.testing.assert_array_equal(streamed.mask_product, whole.mask_product)
    np.testing.assert_allclose(streamed.output_variance, outputs.var(0), rtol=1e-9)


def test_targets_in_blocks(monkeypatch):
    masks, outputs, _ = planted(80, 15, 7)
    whole = datamodels.fit(masks, outputs, method="lasso")
    monkeypatch.setattr(datamodels, "_TARGETS", 4)  # two blocks, the second one padded
    parts = datamodels.fit(masks, outputs, method="lasso")
    np.testing.assert_allclose(parts.penalty, whole.penalty, rtol=1e-6)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-6)


def test_effects_add_up():
    masks, outputs, _ = planted(80, 15, 7)
    found = datamodels.fit(masks, outputs)
    both = found.effect(np.array([1, 4, 9]))
    parts = found.effect(np.array([1])) + found.effect(np.array([4, 9]))
    np.testing.assert_allclose(both, parts)
    everything, without = np.ones((1, 15), bool), np.ones((1, 15), bool)
    without[0, [1, 4, 9]] = False
    np.testing.assert_allclose((found.predict(everything) - found.predict(without))[0], both)
    assert (found.effect(np.array([], int)) == 0).all()
    half = dataclasses.replace(found, weights=found.weights.astype(np.float16))
    assert half.effect(np.array([1])).dtype == np.float32


MASKS, OUTPUTS, _ = planted(20, 6, 2)
OLS: Any = "ols"
NAN = np.where(np.arange(40).reshape(20, 2) == 15, np.nan, OUTPUTS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datamodels.fit(MASKS, OUTPUTS[:19]), r"masks are \[20, 6\] and outputs \[19, 2\]"),
        (lambda: datamodels.fit(MASKS, OUTPUTS[:, 0]), r"outputs \[20\]"),
        (lambda: datamodels.fit(MASKS + 0.5, OUTPUTS), "besides 0 and 1"),
        (lambda: datamodels.fit(MASKS, NAN), "member 7 on target 1 is nan"),
        (lambda: datamodels.fit(MASKS[:9], OUTPUTS[:9], method="lasso"), "9 members are too few"),
        (lambda: datamodels.fit(MASKS[:2], OUTPUTS[:2]), "2 members are too few"),
        (lambda: datamodels.fit(MASKS, OUTPUTS, l1=0.1), "l1 is given, but ridge has l2"),
        (lambda: datamodels.fit(MASKS, OUTPUTS, l2=0.0), "positive"),
        (lambda: datamodels.fit(MASKS, OUTPUTS, method="lasso", l1=-1), "not negative"),
        (lambda: datamodels.fit(MASKS, OUTPUTS, l2=np.ones(3)), r"shape \[3\]"),
        (lambda: datamodels.fit(MASKS, OUTPUTS, method=OLS), "method is 'ols'"),
        (lambda: datamodels.fit(MASKS, OUTPUTS).effect(np.array([6])), "index 6"),
        (lambda: datamodels.fit(MASKS, OUTPUTS).effect(np.array([1, 1])), "twice"),
        (lambda: datamodels.fit(MASKS, OUTPUTS).predict(MASKS[:, 1:]), "6 points"),
        (
            lambda: datamodels.fit_statistics(datamodels.Statistics.of(MASKS, OUTPUTS)),
            "needs its penalty",
        ),
        (
            lambda: datamodels.Statistics.of(MASKS, OUTPUTS).add(MASKS[:, 1:], OUTPUTS),
            "are of 6 points",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
