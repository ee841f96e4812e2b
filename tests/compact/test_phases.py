"""The three phases on a network as small as it may be."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import KFold

from jaxunlearn.compact import Recipe, Warp, fitting, measure, phases, schedules
from jaxunlearn.core import _early_stop, losses, tree
from jaxunlearn.core.loop import EarlyStop
from jaxunlearn.core.optimizers import keras_sgd
from jaxunlearn.core.step import TrainState
from jaxunlearn.nn.images import dual_cnn

SHAPE = (12, 12, 1)
PAIR = dual_cnn.build(SHAPE, n_classes=3, filters=3, hidden=4)
STAGES = (("out", "hidden"), tuple(schedules.LAYERS))
RECIPE = Recipe(
    schedule=STAGES,
    batch_size=16,
    dual_epochs=3,
    unfreeze_epochs=2,
    last_epochs=2,
    folds=3,
    fold_epochs=1,
)
KEYS = jax.random.split(jax.random.key(0), 2)


def toy(n=96):
    """Classes that differ in where the light is."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n).astype(np.int32)
    x = rng.integers(0, 60, (n, *SHAPE))
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return fitting.Images(jnp.asarray(x, jnp.uint8), jnp.asarray(y), 16)


@pytest.fixture(scope="module")
def images():
    return toy()


@pytest.fixture(scope="module")
def dual(images):
    return phases.train_dual(PAIR, RECIPE, images, KEYS)


@pytest.fixture(scope="module")
def stages(dual, images):
    state = phases.fuse(PAIR, RECIPE, dual.state.params, KEYS)
    return state, phases.unfreeze(PAIR, RECIPE, state, images, KEYS)


def test_both_branches_learn_and_keep_their_own_best_epochs(dual, images):
    assert dual.checks["accuracy_1"].shape == (2, 3)
    for i, best in enumerate(dual.best_checks[2:], 1):
        np.testing.assert_array_equal(best, np.argmax(dual.checks[f"accuracy_{i}"], axis=1))
    assert (dual.metrics["loss_1"][:, -1] < dual.metrics["loss_1"][:, 0]).all()


def test_a_model_stops_when_either_branch_has_stopped_improving(images):
    """Against the rule in plain Python; each branch keeps the weights of its own best epoch."""
    recipe = Recipe(batch_size=16, dual_epochs=20, learning_rate=5e-3)
    keys = jax.random.split(jax.random.key(0), 4)
    x = np.random.default_rng(1).integers(0, 150, images.x.shape)
    for image, label in zip(x, np.asarray(images.y), strict=True):
        image[4 * label : 4 * label + 4] += 60  # harder, so that models differ in when they stop
    hard = images._replace(x=jnp.asarray(x, jnp.uint8), n_val=32)
    found = phases.train_dual(PAIR, recipe, hard, keys)
    lengths, names = [], ("accuracy_1", "accuracy_2")
    for model in range(len(keys)):
        series = [found.checks[name][model] for name in names]
        lengths.append(int((~np.isnan(series[0])).sum()))
        assert lengths[-1] == min(20, *(_stops_after(own[: lengths[-1]]) for own in series))
    assert len(set(lengths)) > 1 and min(lengths) < 20
    val = np.asarray(hard.x[:32]), np.asarray(hard.y[:32])
    kept = phases.branch_accuracies(PAIR, found.state.params, *val)
    for i, name in enumerate(names):
        np.testing.assert_allclose(kept[:, i], np.nanmax(found.checks[name], 1), atol=1e-6)
    assert not np.array_equal(found.best_checks[2], found.best_checks[3])


def _stops_after(series):
    best, wait = -np.inf, 0
    for epoch, value in enumerate(series):
        if epoch < 3:
            continue
        wait += 1
        if value > best + 0.001:
            best, wait = value, 0
        elif wait >= 5:
            return epoch + 1
    return 20


def test_augmentation_is_drawn_afresh(images):
    batch = {"x": images.x[:8], "y": images.y[:8]}
    transform = phases.dual_batch(Warp())
    first, second = (transform(batch, jax.random.key(i)) for i in range(2))
    np.testing.assert_array_equal(first["x_1"], second["x_1"])
    assert not np.allclose(first["x_2"], second["x_2"], atol=0.1)
    assert Warp() == Warp(0.1, 0.2, 0.2, 0.0)  # the paper's


def test_the_last_stage_and_the_folds_train_by_the_same_sgd(monkeypatch, images):
    """Nesterov's momentum of 0.9, decoupled decay of 1e-4; folds stop after 3 epochs."""
    folds = []

    def fit(stage, *args, **options):
        folds.append(stage)
        return types.SimpleNamespace(state=None)

    monkeypatch.setattr(phases, "fit", fit)
    phases.fine_tune(PAIR, Recipe(fold_mode="continued"), None, images, KEYS)
    (last, _) = phases.unfreezing(PAIR, Recipe())[-1]
    assert folds[0].stops[0].patience == 3 and last.stops[0].patience == 10
    params = {"w": jnp.array([1.0, -2.0])}
    theirs = keras_sgd(1e-3, 0.9, 1e-4)
    for ours in (folds[0].optimizer, last.optimizer):
        state, other = ours.init(params), theirs.init(params)
        for g in ([0.5, 1.0], [-2.0, 0.1], [1.0, 1.0]):
            updates, state = ours.update({"w": jnp.array(g)}, state, params)
            expected, other = theirs.update({"w": jnp.array(g)}, other, params)
            np.testing.assert_array_equal(updates["w"], expected["w"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_val": 0}, "n_val 0; as many of each, and n_val from 1"),
        ({"n_val": 96}, "96 y and n_val 96"),
        ({"y": jnp.zeros(5, jnp.int32)}, "has 96 x, 5 y"),
    ],
)
def test_bad_images(images, change, message):
    with pytest.raises(ValueError, match=message):
        phases.train_dual(PAIR, RECIPE, images._replace(**change), KEYS)


def test_no_folds_cannot_be_trained(stages, images):
    recipe = Recipe(**{**vars(RECIPE), "fold_mode": "none"})
    with pytest.raises(ValueError, match="fold_mode is 'none'; independent or continued"):
        phases.fine_tune(PAIR, recipe, stages[1][-1].state, images, KEYS)


def test_a_branch_does_not_depend_on_the_other_ones_images(dual, images):
    """Another augmentation changes the second branch and not the first."""
    still = Recipe(**{**vars(RECIPE), "warp": Warp(0.0, 0.0, 0.0)})
    other = phases.train_dual(PAIR, still, images, KEYS)
    np.testing.assert_allclose(other.metrics["loss_1"], dual.metrics["loss_1"], rtol=1e-5)
    assert not np.allclose(other.metrics["loss_2"], dual.metrics["loss_2"], rtol=1e-2)


def test_stages_train_what_they_say_and_nothing_else(stages):
    state, results = stages
    for (stage, _), result in zip(phases.unfreezing(PAIR, RECIPE), results, strict=True):
        mask = tree.named(tree.select(state.params, stage.trainable))
        before, after = tree.named(state.params), tree.named(result.state.params)
        for name, trains in mask.items():
            same = np.array_equal(before[name], after[name])
            assert same or trains, f"{name} was frozen in {stage.name}"
        assert any(not np.array_equal(before[n], after[n]) for n, own in mask.items() if own)
        state = result.state


def test_cached_heads_change_no_more_than_rounding(stages, images):
    state, results = stages
    (stage, n_epochs), *_ = phases.unfreezing(PAIR, RECIPE)
    plain = Recipe(**{**vars(RECIPE), "schedule": (("out",), ("out", "hidden", "head"))})
    slow = phases.Stage(**{**vars(stage), **_reads_images(plain)})
    found = fitting.fit(
        slow, n_epochs, state, KEYS, images, plain.batch_size, fitting.HERE, fitting.plain_batch
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        found.state.params,
        results[0].state.params,
    )


def test_heads_are_asked_again_after_a_stage_below_them(stages, images):
    """With layers in any order, a later stage above the heads must not read what they said once."""
    layers = (("out",), ("conv_1",), ("out",))
    recipe = Recipe(**{**vars(RECIPE), "schedule": layers})
    state, _ = stages
    found = phases.unfreeze(PAIR, recipe, state, images, KEYS)
    x, y = np.asarray(images.x[: images.n_val]), images.y[: images.n_val]
    last = found[-1]
    for i, own in enumerate(last.checks["loss"][np.arange(2), last.best_checks[0]]):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], last.state.params)
        logits = jnp.asarray(measure.logits_of(PAIR.fused, params, x))
        np.testing.assert_allclose(losses.cross_entropy(logits, y).mean(), own, rtol=1e-5)


def _reads_images(recipe):
    """Objective and evaluation of a stage that trains below the heads."""
    (_, (last, _)) = phases.unfreezing(PAIR, recipe)
    return {"objective": last.objective, "evaluate": last.evaluate}


@pytest.fixture
def starts(monkeypatch):
    """The parameters that all models start from, as they come."""
    seen, run = [], fitting.members.run

    def watched(stage, state, *args, **options):
        seen.append(state.params)
        return run(stage, state, *args, **options)

    monkeypatch.setattr(fitting.members, "run", watched)
    return seen


def test_honest_folds_all_start_from_the_unfrozen_model(stages, images, starts):
    unfrozen = stages[1][-1].state
    folds = phases.fine_tune(PAIR, RECIPE, unfrozen, images, KEYS)
    assert len(folds) == 3 and len(starts) == 1
    for fold in range(3):
        part = jax.tree.map(lambda x, fold=fold: x[2 * fold : 2 * fold + 2], starts[0])
        jax.tree.map(np.testing.assert_array_equal, part, unfrozen.params)
    assert len({tree.digest(fold.state.params) for fold in folds}) == 3
    _unseen_accuracies_are_of_the_first_images(folds, images)


def _unseen_accuracies_are_of_the_first_images(folds, images):
    found = phases.unseen_accuracies(PAIR, folds, images)
    everything = phases.unseen_accuracies(PAIR, folds, images._replace(n_val=len(images.y)))
    assert found.shape == (3, 2)
    _, val = phases.fold_rows(len(images.y), 3)
    for k, rows in enumerate(val):
        rows = rows[rows >= 0]
        own = jax.tree.map(lambda leaf: leaf[1], folds[k].state.params)
        answers = measure.logits_of(PAIR.fused, own, np.asarray(images.x)).argmax(-1)
        is_right = (answers == np.asarray(images.y))[rows]
        np.testing.assert_allclose(everything[k, 1], is_right.mean())
        np.testing.assert_allclose(found[k, 1], is_right[rows < images.n_val].mean())
    of_one = phases.unseen_accuracies(PAIR, folds, images._replace(n_val=1))
    assert np.isnan(of_one).sum() == 4  # two of the three folds, of both models


def test_continued_folds_go_on_from_one_another(stages, images, starts):
    recipe = Recipe(**{**vars(RECIPE), "fold_mode": "continued"})
    folds = phases.fine_tune(PAIR, recipe, stages[1][-1].state, images, KEYS)
    for before, now in zip(folds[:-1], starts[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, now, before.state.params)


@pytest.mark.parametrize(("n", "k"), [(60, 6), (61, 6), (13, 5)])
def test_folds_are_those_of_scikit_learn(n, k):
    train, val = phases.fold_rows(n, k)
    for i, (theirs, held_out) in enumerate(KFold(k, shuffle=True, random_state=42).split(range(n))):
        np.testing.assert_array_equal(np.sort(train[i][train[i] >= 0]), theirs)
        np.testing.assert_array_equal(np.sort(val[i][val[i] >= 0]), held_out)
    together = np.sort(val[val >= 0])
    np.testing.assert_array_equal(together, np.arange(n))


def test_the_notebooks_series_stops_after_epoch_11_and_restores_the_first():
    """Validation accuracies printed by the author's last stage."""
    series = [
        0.9876,
        0.9871,
        0.9876,
        0.9876,
        0.9880,
        0.9874,
        0.9866,
        0.9873,
        0.9874,
        0.9882,
        0.9876,
    ]
    stop = EarlyStop("accuracy", patience=10, min_delta=0.001, mode="max")
    state = TrainState({"w": jnp.zeros(())}, (), {}, jnp.zeros((), jnp.int32), {})
    (tracker,) = _early_stop.start_trackers((stop,), state)
    for epoch, value in enumerate(series):
        assert int(tracker.wait) < stop.patience
        state = TrainState({"w": jnp.array(epoch + 1.0)}, (), {}, state.step, {})
        tracker = _early_stop.track(
            tracker, stop, {"accuracy": jnp.array(value)}, jnp.array(epoch), state
        )
    assert int(tracker.wait) == stop.patience
    assert float(_early_stop.restore_best(tracker, state).params["w"]) == 1.0


def test_more_folds_than_images():
    with pytest.raises(ValueError, match="folds is 7, but there are 6 images"):
        phases.fold_rows(6, 7)
