"""The three phases on a network as small as it may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import KFold

from jaxunlearn.compact import Recipe, Warp, measure, schedules, training
from jaxunlearn.core import _early_stop, losses, tree
from jaxunlearn.core.loop import EarlyStop
from jaxunlearn.core.step import TrainState
from jaxunlearn.nn import dual_cnn

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
    return training.Images(jnp.asarray(x, jnp.uint8), jnp.asarray(y), 16)


@pytest.fixture(scope="module")
def images():
    return toy()


@pytest.fixture(scope="module")
def dual(images):
    return training.train_dual(PAIR, RECIPE, images, KEYS)


@pytest.fixture(scope="module")
def stages(dual, images):
    state = training.fuse(PAIR, RECIPE, dual.state.params, KEYS)
    return state, training.unfreeze(PAIR, RECIPE, state, images, KEYS)


def test_both_branches_learn_and_keep_their_own_best_epochs(dual, images):
    assert dual.checks["accuracy_1"].shape == (2, 3)
    for i, best in enumerate(dual.best_checks[2:], 1):
        np.testing.assert_array_equal(best, np.argmax(dual.checks[f"accuracy_{i}"], axis=1))
    assert (dual.metrics["loss_1"][:, -1] < dual.metrics["loss_1"][:, 0]).all()


def test_a_branch_does_not_depend_on_the_other_ones_images(dual, images):
    """Another augmentation changes the second branch and not the first."""
    still = Recipe(**{**vars(RECIPE), "warp": Warp(0.0, 0.0, 0.0)})
    other = training.train_dual(PAIR, still, images, KEYS)
    np.testing.assert_allclose(other.metrics["loss_1"], dual.metrics["loss_1"], rtol=1e-5)
    assert not np.allclose(other.metrics["loss_2"], dual.metrics["loss_2"], rtol=1e-2)


def test_stages_train_what_they_say_and_nothing_else(stages):
    state, results = stages
    for (stage, _), result in zip(training.unfreezing(PAIR, RECIPE), results, strict=True):
        mask = tree.named(tree.select(state.params, stage.trainable))
        before, after = tree.named(state.params), tree.named(result.state.params)
        for name, trains in mask.items():
            same = np.array_equal(before[name], after[name])
            assert same or trains, f"{name} was frozen in {stage.name}"
        assert any(not np.array_equal(before[n], after[n]) for n, own in mask.items() if own)
        state = result.state


def test_cached_heads_change_no_more_than_rounding(stages, images):
    state, results = stages
    (stage, n_epochs), *_ = training.unfreezing(PAIR, RECIPE)
    plain = Recipe(**{**vars(RECIPE), "schedule": (("out",), ("out", "hidden", "head"))})
    slow = training.Stage(**{**vars(stage), **_reads_images(plain)})
    found = training.through(
        slow, n_epochs, state, KEYS, images, plain.batch_size, training.HERE, training.plain_batch
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
    found = training.unfreeze(PAIR, recipe, state, images, KEYS)
    x, y = np.asarray(images.x[: images.n_val]), images.y[: images.n_val]
    last = found[-1]
    for i, own in enumerate(last.checks["loss"][np.arange(2), last.best_checks[0]]):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], last.state.params)
        logits = jnp.asarray(measure.logits_of(PAIR.fused, params, x))
        np.testing.assert_allclose(losses.cross_entropy(logits, y).mean(), own, rtol=1e-5)


def _reads_images(recipe):
    """Objective and evaluation of a stage that trains below the heads."""
    (_, (last, _)) = training.unfreezing(PAIR, recipe)
    return {"objective": last.objective, "evaluate": last.evaluate}


@pytest.fixture
def starts(monkeypatch):
    """The parameters that each cohort starts from, as they come."""
    seen, run = [], training.cohort.run

    def watched(stage, state, *args, **options):
        seen.append(state.params)
        return run(stage, state, *args, **options)

    monkeypatch.setattr(training.cohort, "run", watched)
    return seen


def test_honest_folds_all_start_from_the_unfrozen_model(stages, images, starts):
    unfrozen = stages[1][-1].state
    folds = training.fine_tune(PAIR, RECIPE, unfrozen, images, KEYS)
    assert len(folds) == 3 and len(starts) == 1
    for fold in range(3):
        part = jax.tree.map(lambda x, fold=fold: x[2 * fold : 2 * fold + 2], starts[0])
        jax.tree.map(np.testing.assert_array_equal, part, unfrozen.params)
    assert len({tree.digest(fold.state.params) for fold in folds}) == 3
    _unseen_accuracies_are_of_the_first_images(folds, images)


def _unseen_accuracies_are_of_the_first_images(folds, images):
    found = training.unseen_accuracies(PAIR, folds, images)
    everything = training.unseen_accuracies(PAIR, folds, images._replace(n_val=len(images.y)))
    assert found.shape == (3, 2)
    _, val = training.fold_rows(len(images.y), 3)
    for k, rows in enumerate(val):
        rows = rows[rows >= 0]
        own = jax.tree.map(lambda leaf: leaf[1], folds[k].state.params)
        answers = measure.logits_of(PAIR.fused, own, np.asarray(images.x)).argmax(-1)
        is_right = (answers == np.asarray(images.y))[rows]
        np.testing.assert_allclose(everything[k, 1], is_right.mean())
        np.testing.assert_allclose(found[k, 1], is_right[rows < images.n_val].mean())
    of_one = training.unseen_accuracies(PAIR, folds, images._replace(n_val=1))
    assert np.isnan(of_one).sum() == 4  # two of the three folds, of both models


def test_continued_folds_go_on_from_one_another(stages, images, starts):
    recipe = Recipe(**{**vars(RECIPE), "fold_mode": "continued"})
    folds = training.fine_tune(PAIR, recipe, stages[1][-1].state, images, KEYS)
    for before, now in zip(folds[:-1], starts[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, now, before.state.params)


@pytest.mark.parametrize(("n", "k"), [(60, 6), (61, 6), (13, 5)])
def test_folds_are_those_of_scikit_learn(n, k):
    train, val = training.fold_rows(n, k)
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
        training.fold_rows(6, 7)
