"""Oracle Matching, Datamodel Matching and DM-Direct."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.core.model import predict
from jaxunlearn.unlearn import Problem, matching

MODEL = nn.mlp(5, (8,), 3)
SETTINGS = vars(
    matching.DatamodelMatching(
        epochs=3, batch_size=16, learning_rate=1e-2, forget_multiplier=2.5, retain_multiplier=4.0
    )
)
MATCH = {name: value for name, value in SETTINGS.items() if name != "multiplier"}
KEY = jax.random.key(3)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    effect = rng.normal(size=(70, 3)).astype(np.float32)  # ten validation points
    forget = jnp.arange(7)
    return Problem(
        jnp.asarray(x), jnp.asarray(y), jnp.arange(7, 60), forget, 3,
        effect=jnp.asarray(effect), oracle_logits=jnp.asarray(effect + 1),
    )  # fmt: skip


def start(model=MODEL):
    return jax.jit(model.init)(jax.random.key(0))


def test_datamodel_matching_learns_its_own_logits_minus_the_effect(problem):
    params, stats = start()
    settings = SETTINGS | {"epochs": 1000, "retain_multiplier": 0.0, "decay": 0.997}
    forget = jax.jit(
        lambda: matching.datamodel_matching(MODEL, params, stats, problem, KEY, **settings)
    )
    result = forget()
    wanted = predict(MODEL, params, stats, problem.x) - problem.effect[:60]
    found = predict(MODEL, result.params, result.stats, problem.x)
    assert np.abs(found - wanted)[:7].max() < 0.02
    assert result.losses[-1] < 1e-3 * result.losses[0]
    assert result.n_gradients == 1000 * 17


def test_oracle_matching_takes_the_oracles_logits(problem):
    params, stats = start()
    both = dataclasses.replace(
        problem, oracle_logits=predict(MODEL, params, stats, problem.x) - problem.effect[:60]
    )
    a = matching.oracle_matching(MODEL, params, stats, both, KEY, **MATCH)
    b = matching.datamodel_matching(MODEL, params, stats, both, KEY, **SETTINGS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), a.params, b.params)


def test_without_an_effect_nothing_is_to_be_learned(problem):
    params, stats = start()
    for changed, settings in (
        (problem, SETTINGS | {"multiplier": 0.0}),
        (dataclasses.replace(problem, effect=jnp.zeros((70, 3))), SETTINGS),
    ):
        result = matching.datamodel_matching(MODEL, params, stats, changed, KEY, **settings)
        assert np.abs(result.losses).max() < 1e-9


def test_the_sample_is_the_papers(problem, monkeypatch):
    """Whole copies of the forget set, then its first points; one retain sample for all epochs."""
    seen = []

    def spy(step, state, shared, data, key, n):
        seen.append([np.asarray(data(None, t)["x"]) for t in range(n)])
        return state, {"loss": jnp.zeros(n)}

    monkeypatch.setattr(matching.loop, "scan", spy)
    params, stats = start()
    with jax.disable_jit():
        for seed in (3, 4):  # of two models
            key = jax.random.key(seed)
            matching.oracle_matching(MODEL, params, stats, problem, key, **MATCH)
    x = np.asarray(problem.x)

    def rows(batches):
        return [int(np.flatnonzero((x == row).all(1))[0]) for batch in batches for row in batch]

    epochs = [rows(full + rest) for full, rest in zip(seen[::2], seen[1::2], strict=True)]
    assert len(epochs) == 6
    assert all(len(epoch) == 17 + 28 for epoch in epochs)  # none is dropped
    assert [len(batch) for batch in seen[0] + seen[1]] == [16, 16, 13]
    counts = np.bincount(epochs[0], minlength=60)
    np.testing.assert_array_equal(counts[:7], [3, 3, 3, 2, 2, 2, 2])
    assert counts[7:].max() == 1
    assert all((np.bincount(epoch, minlength=60) == counts).all() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6  # shuffled anew


def test_direct_subtracts_the_effect_and_leaves_the_weights(problem):
    params, stats = start()
    result = matching.datamodel_direct(MODEL, params, stats, problem, KEY, multiplier=2.0)
    assert result.params is params
    np.testing.assert_allclose(result.correction, -2 * problem.effect)


def test_the_student_trains_in_train_mode_and_the_targets_are_of_eval_mode():
    model = nn.cnn((8, 8, 1), (4,), 3, batch_norm=True)
    params, stats = start(model)
    stats = jax.tree.map(lambda s: s + 0.3, stats)
    rng = np.random.default_rng(0)
    problem = Problem(
        jnp.asarray(rng.normal(size=(30, 8, 8, 1)), jnp.float32), jnp.zeros(30, int),
        jnp.arange(5, 30), jnp.arange(5), 3, effect=jnp.zeros((30, 3)),
    )  # fmt: skip
    result = matching.datamodel_matching(model, params, stats, problem, KEY, **SETTINGS)
    assert result.losses[0] > 1e-4  # batch statistics give other logits than running ones
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), stats, result.stats)
    assert min(jax.tree.leaves(changed)) > 0


@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_other_losses_pull_towards_the_targets(problem, loss):
    params, stats = start()
    settings = MATCH | {"loss": loss, "epochs": 600, "retain_multiplier": 0.0, "decay": 0.995}
    result = jax.jit(
        lambda: matching.oracle_matching(MODEL, params, stats, problem, KEY, **settings)
    )()
    logits, targets = predict(MODEL, result.params, stats, problem.x)[:7], problem.oracle_logits[:7]
    if loss == "ce":  # its optimum has the targets' softmax
        np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(targets), atol=0.02)
    else:
        np.testing.assert_array_equal(logits.argmax(1), targets.argmax(1))
        assert (jax.nn.softmax(logits).max(1) > jax.nn.softmax(targets).max(1) - 0.02).all()


def test_proximity_keeps_the_parameters_near(problem):
    params, stats = start()

    def distance(proximity):
        result = matching.oracle_matching(
            MODEL, params, stats, problem, KEY, **MATCH | {"proximity": proximity}
        )
        return float(matching._squared_distance(result.params, params))

    assert distance(10.0) < 0.3 * distance(0.0)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"retain_multiplier": 8.0}, "56 points for 7 to forget, but the retain set has 53"),
        ({"oracle_logits": None}, {}, "needs problem.oracle_logits"),
        ({}, {"retain_multiplier": 0.0, "forget_multiplier": 0.1}, "no point is left"),
        ({}, {"loss": "l1"}, "loss is 'l1'; it must be mse, ce, kd"),
    ],
)
def test_bad_input(problem, change, settings, message):
    params, stats = start()
    changed = dataclasses.replace(problem, **change)
    with pytest.raises(ValueError, match=message):
        matching.oracle_matching(MODEL, params, stats, changed, KEY, **MATCH | settings)
