"""Each method against its definition, and what it may look at."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data, nn
from jaxunlearn.core import keys, losses, tree
from jaxunlearn.unlearn import METHODS, Problem, Scrub, _scrub, baselines, recipe
from jaxunlearn.unlearn.methods import check_settings
from jaxunlearn.unlearn.scratch import Training, train

KEY = jax.random.key(5)
MODEL = nn.mlp(64, (16,), 10)
FAST = Training(epochs=12, batch_size=30, learning_rate=0.1)
LEARNERS = [name for name in METHODS if name not in ("none", "dm_direct")]


@pytest.fixture(scope="module")
def problem():
    digits = data.load("digits", 300)
    forget = data.forget_sets.cluster(digits.x_train, digits.y_train, 8, 12)
    drawn = jax.random.normal(KEY, (2, 300, 10))  # as if estimated
    return dataclasses.replace(Problem.of(digits, forget), effect=drawn[0], oracle_logits=drawn[1])


@pytest.fixture(scope="module")
def trained(problem):
    run = jax.jit(lambda p: train(MODEL, p, jnp.arange(300), KEY, **vars(FAST)))
    return run(problem)


def settings_of(name):
    return FAST if name == "retrain" else METHODS[name][1]


def apply(name, trained, problem, key=KEY, model=MODEL, **changes):
    run = program(name, dataclasses.replace(settings_of(name), **changes), model)
    return run(trained.params, trained.stats, problem, key)


@functools.cache
def program(name, settings, model):
    return jax.jit(lambda p, s, problem, key: recipe(name, settings)(model, p, s, problem, key))


@jax.jit
def mean_loss(params, problem, rows):
    logits, _ = MODEL.apply(params, {}, problem.x[rows])
    return losses.cross_entropy(logits, problem.y[rows]).mean()


def test_training_learns(trained, problem):
    assert mean_loss(trained.params, problem, problem.retain) < 0.3
    assert int(trained.n_gradients) == 12 * 300
    assert trained.losses.shape == (120,)


def test_none_is_the_identity(trained, problem):
    after = apply("none", trained, problem)
    chex.assert_trees_all_equal(after.params, trained.params)
    assert int(after.n_gradients) == 0 and after.losses.shape == (0,)


@pytest.mark.parametrize("name", LEARNERS)
def test_methods_move_the_parameters_and_stay_finite(name, trained, problem):
    changes = {"alpha": 2.0} if name == "ssd" else {}
    after = apply(name, trained, problem, **changes)
    chex.assert_trees_all_equal_shapes_and_dtypes(after.params, trained.params)
    chex.assert_tree_all_finite(after.params)
    assert tree.digest(after.params) != tree.digest(trained.params)
    again = apply(name, trained, problem, **changes)
    assert tree.digest(again.params) == tree.digest(after.params)
    other = apply(name, trained, problem, key=jax.random.key(6), **changes)
    gap = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), other.params, after.params)
    drawn = name not in ("ssd", "ascent")  # ascent's only batch is the whole forget set
    assert (max(jax.tree.leaves(gap)) > 1e-4) == drawn


@pytest.mark.parametrize("name", ["retrain", "finetune"])
def test_what_must_not_see_the_forget_set_does_not(name, trained, problem):
    poisoned = dataclasses.replace(problem, x=problem.x.at[problem.forget].set(jnp.nan))
    poisoned = dataclasses.replace(poisoned, y=poisoned.y.at[problem.forget].set(3))
    before, after = apply(name, trained, problem), apply(name, trained, poisoned)
    assert tree.digest(before.params) == tree.digest(after.params)


def test_retraining_ignores_the_trained_model(trained, problem):
    shifted = trained._replace(params=jax.tree.map(lambda p: p + 1, trained.params))
    one, other = apply("retrain", trained, problem), apply("retrain", shifted, problem)
    assert tree.digest(one.params) == tree.digest(other.params)
    direct = jax.jit(lambda p: train(MODEL, p, p.retain, KEY, **vars(FAST)))(problem)
    chex.assert_trees_all_close(one.params, direct.params, atol=1e-5)
    assert int(one.n_gradients) == 12 * (288 // 30) * 30


def test_ascent_only_sees_the_forget_set_and_climbs(trained, problem):
    poisoned = dataclasses.replace(problem, x=problem.x.at[problem.retain].set(jnp.nan))
    after = apply("ascent", trained, poisoned, learning_rate=0.02)
    chex.assert_tree_all_finite(after.params)
    assert mean_loss(after.params, problem, problem.forget) > 2 * mean_loss(
        trained.params, problem, problem.forget
    )
    # One step is plain gradient ascent on the whole forget set.
    one = apply("ascent", trained, problem, epochs=1, learning_rate=0.1)
    grad = jax.jit(jax.grad(mean_loss))(trained.params, problem, problem.forget)
    expected = jax.tree.map(lambda p, g: p + 0.1 * g, trained.params, grad)
    chex.assert_trees_all_close(one.params, expected, atol=1e-6)


def test_ascent_descent_trades_both_losses(trained, problem):
    after = apply("ascent_descent", trained, problem, forget_weight=0.2, learning_rate=0.01)
    assert mean_loss(after.params, problem, problem.forget) > mean_loss(
        trained.params, problem, problem.forget
    )
    assert int(after.n_gradients) == 60 * (30 + 12)
    zero = apply("ascent_descent", trained, problem, forget_weight=0.0)
    poisoned = dataclasses.replace(problem, y=problem.y.at[problem.forget].set(0))
    also_zero = apply("ascent_descent", trained, poisoned, forget_weight=0.0)
    assert tree.digest(zero.params) == tree.digest(also_zero.params)


def test_random_labels_are_wrong_fixed_and_spread(problem, monkeypatch):
    seen = {}

    def capture(objective, optimizer, params, stats, source, key, n_steps):
        seen["y"], seen["indices"] = source.arrays["y"], source.indices
        return None

    monkeypatch.setattr(baselines, "descend", capture)
    labels = []
    for seed in range(20):
        settings = vars(METHODS["random_labels"][1])
        baselines.random_labels(MODEL, None, None, problem, jax.random.key(seed), **settings)
        labels.append(np.asarray(seen["y"][problem.forget]))
        np.testing.assert_array_equal(seen["y"][problem.retain], problem.y[problem.retain])
    assert sorted(np.asarray(seen["indices"]).tolist()) == list(range(300))
    assert (np.array(labels) != np.asarray(problem.y[problem.forget])).all()
    counts = np.bincount(np.ravel(labels), minlength=10)
    assert counts[8] == 0 and (np.delete(counts, 8) > 10).all()  # 240 draws over 9 classes


def test_rates_can_be_swept_in_one_program(trained, problem):
    rates = jnp.array([0.0, 0.01, 0.05])
    others = {k: v for k, v in vars(METHODS["finetune"][1]).items() if k != "learning_rate"}

    def one(rate):
        return baselines.finetune(
            MODEL, trained.params, trained.stats, problem, KEY, learning_rate=rate, **others
        ).params

    swept = jax.jit(jax.vmap(one))(rates)
    chex.assert_trees_all_equal(jax.tree.map(lambda p: p[0], swept), trained.params)
    alone = apply("finetune", trained, problem, learning_rate=0.05)
    chex.assert_trees_all_close(jax.tree.map(lambda p: p[2], swept), alone.params, atol=1e-3)


# --- SCRUB ----------------------------------------------------------------------------------


def test_scrub_schedule_and_cost(trained, problem):
    plan = _scrub._Plan(epochs=3, ascent_epochs=2, forget_steps=2, retain_steps=3)
    is_forget = plan.is_forget(np.arange(plan.n_steps))
    assert "".join("f" if f else "r" for f in is_forget) == "ffrrrffrrrrrr"
    assert plan.n_forget == sum(is_forget) == 4
    assert [plan.first_step(epoch) for epoch in range(4)] == [0, 5, 10, 13]
    after = apply("scrub", trained, problem, epochs=2, ascent_epochs=1)
    assert after.losses.shape == (1 + 2 * 4,) and int(after.n_gradients) == 12 + 2 * 4 * 60
    assert abs(after.losses[0]) < 2e-6  # the student starts at its teacher, but for rounding
    without = apply("scrub", trained, problem, epochs=2, ascent_epochs=0)
    assert int(without.n_gradients) == 2 * 4 * 60


def test_scrub_equals_its_definition_step_by_step(trained, problem):
    """One ascent epoch and one descent epoch, written out with one momentum."""
    settings = Scrub(epochs=1, ascent_epochs=1, retain_batch=288, learning_rate=0.05, decay_at=())
    start = jax.tree.map(lambda p: p * 1.1, trained.params)  # so that nothing is zero by symmetry
    after = recipe("scrub", settings)(MODEL, start, {}, problem, KEY)
    teacher = MODEL.apply(start, {}, problem.x)[0]

    def kl(params, rows):
        logits = MODEL.apply(params, {}, problem.x[rows])[0] / settings.temperature
        log_p = jax.nn.log_softmax(teacher[rows] / settings.temperature)
        return (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits))).sum(
            -1
        ).mean() * settings.temperature**2

    def keep(params):
        rows = problem.retain
        logits = MODEL.apply(params, {}, problem.x[rows])[0]
        ce = losses.cross_entropy(logits, problem.y[rows]).mean()
        return settings.gamma * ce + settings.alpha * kl(params, rows)

    params, momentum = start, jax.tree.map(jnp.zeros_like, start)
    for objective in (lambda p: -kl(p, problem.forget), keep):
        grads = jax.jit(jax.grad(objective))(params)
        grads = jax.tree.map(lambda g, p: g + settings.weight_decay * p, grads, params)
        momentum = jax.tree.map(lambda m, g: settings.momentum * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - settings.learning_rate * m, params, momentum)
    chex.assert_trees_all_close(after.params, params, atol=1e-5)


def test_scrub_lowers_its_rate_where_it_says(trained, problem):
    # With the rate down to a tenth from epoch 0 on, the whole run is that of a tenth of the rate.
    low = apply("scrub", trained, problem, epochs=2, learning_rate=0.1, decay_at=(0,))
    same = apply("scrub", trained, problem, epochs=2, learning_rate=0.01, decay_at=())
    chex.assert_trees_all_close(low.params, same.params, atol=1e-5)
    later = apply("scrub", trained, problem, epochs=2, learning_rate=0.1, decay_at=(1,))
    n_first = 1 + 4  # one forget and four retain steps in epoch 0
    plain = apply("scrub", trained, problem, epochs=2, learning_rate=0.1, decay_at=())
    np.testing.assert_array_equal(later.losses[: n_first + 1], plain.losses[: n_first + 1])
    assert not np.allclose(later.losses[-3:], plain.losses[-3:])


# --- SSD ------------------------------------------------------------------------------------


def test_ssd_equals_its_definition(trained, problem):
    after = apply("ssd", trained, problem, alpha=3.0, lam=0.7)

    def fisher(rows):
        loss = lambda p, i: losses.cross_entropy(  # noqa: E731
            MODEL.apply(p, {}, problem.x[i][None])[0][0], problem.y[i]
        )
        grad, total = jax.jit(jax.grad(loss)), jax.tree.map(np.zeros_like, trained.params)
        for i in rows:
            grads = jax.device_get(grad(trained.params, i))
            total = jax.tree.map(lambda t, g: t + g**2 / np.float32(len(rows)), total, grads)
        return jax.tree.map(jnp.asarray, total)

    forget, everything = fisher(np.asarray(problem.forget)), fisher(np.arange(300))
    chosen = jax.tree.map(lambda f, a: f > 3.0 * a, forget, everything)
    expected = jax.tree.map(
        lambda p, f, a, c: jnp.where(c, p * jnp.minimum(1, 0.7 * a / f), p),
        trained.params,
        forget,
        everything,
        chosen,
    )
    n_chosen = sum(int(c.sum()) for c in jax.tree.leaves(chosen))
    assert 10 < n_chosen < tree.size(trained.params)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-3, atol=1e-5)
    assert int(after.n_gradients) == 312


# --- all methods ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_with_batch_norm():
    model = nn.cnn((8, 8, 1), (4,), 10, batch_norm=True)
    two = jax.vmap(lambda i: keys.fold(KEY, i))(jnp.arange(2))
    return model, two, jax.jit(jax.vmap(model.init))(two)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("scrub", "dmm") else pytest.param(name, marks=pytest.mark.slow)
        for name in LEARNERS
    ],
)
def test_methods_run_over_lanes_and_with_batch_norm(name, problem, two_with_batch_norm):
    model, two, (params, stats) = two_with_batch_norm
    settings = settings_of(name)
    small = {"epochs": 1, "steps": 2, "ascent_epochs": 1}
    small = {name: value for name, value in small.items() if hasattr(settings, name)}
    settings = dataclasses.replace(settings, **small)
    run = lambda p, s, k: recipe(name, settings)(model, p, s, problem, k)  # noqa: E731
    lane = jax.jit(jax.vmap(run))(params, stats, two)
    one = jax.jit(run)(*jax.tree.map(lambda x: x[1], (params, stats)), two[1])
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], (lane.params, lane.stats)), (one.params, one.stats), atol=1e-3
    )
    moved = tree.digest(one.stats) != tree.digest(jax.tree.map(lambda x: x[1], stats))
    assert moved == (name != "ssd")  # SSD looks in eval mode, all others train


def test_unknown_names_and_bad_settings():
    with pytest.raises(ValueError, match="'forget_it'; known methods: none, retrain"):
        recipe("forget_it")
    for changes, message in [
        ({"epochs": 0}, "scrub.epochs is 0; it must be finite and >= 1"),
        ({"learning_rate": float("nan")}, "scrub.learning_rate is nan"),
        ({"learning_rate": -0.1}, "scrub.learning_rate is -0.1"),
        ({"momentum": 1.0}, "scrub.momentum is 1.0; it must be below 1"),
        ({"temperature": 0.0}, "scrub.temperature is 0"),
        ({"decay_at": (3, -1)}, r"scrub.decay_at is \(3, -1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_settings("scrub", Scrub(**changes))
    check_settings("scrub", Scrub(ascent_epochs=0))


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_takes_its_own_settings_alone(name):
    default = METHODS[name][1]
    strangers = [3, {"epochs": 3}, type(default), ()]
    strangers += [METHODS["ssd" if name == "scrub" else "scrub"][1]] * (name != "none")
    for stranger in strangers:
        with pytest.raises(ValueError, match=f"an instance of {type(default).__name__} is needed"):
            recipe(name, stranger)
    for field in dataclasses.fields(default):
        for bad in ({}, -1, float("nan")) if field.name != "augment" else ({}, ("spin",)):
            with pytest.raises(ValueError, match=field.name):
                recipe(name, dataclasses.replace(default, **{field.name: bad}))
    with pytest.raises(ValueError, match="known methods"):
        recipe([name])
