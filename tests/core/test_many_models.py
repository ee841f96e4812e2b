"""Several models through one stage, each with its own data and early stopping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.core import EarlyStop, ensemble, members, stages, tree
from jaxunlearn.core.checks import NonFiniteError
from jaxunlearn.core.keys import fold
from jaxunlearn.core.optimizers import sgd
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import supervised
from jaxunlearn.data import batches

N, EPOCHS, PER_EPOCH = 3, 6, 4
MODEL = nn.mlp(4, (8,), 3)
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
SHARED = {"x": X, "y": (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0.5)}
KEYS = jax.random.split(jax.random.key(1), N)


def source(reads):
    return batches(reads["shared"], reads["each"]["rows"], 8)


def evaluate(state, reads):
    """Made so that each model stops where its `reads["each"]["until"]` says."""
    epoch = state.step // PER_EPOCH
    return {"score": jnp.minimum(epoch, reads["each"]["until"]) * 1.0}


def the_stage(patience=2, trainable=".*"):
    stop = EarlyStop("score", patience, mode="max")
    return Stage(
        "train",
        supervised(MODEL),
        None,
        OPTIMIZER,
        EPOCHS * PER_EPOCH,
        trainable=trainable,
        evaluate=evaluate,
        every=PER_EPOCH,
        stops=(stop,),
    )


OPTIMIZER = sgd(0.1)


def start():
    return members.init(*jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), N)))


def own(until=(1, 2, 100)):
    rows = np.stack([np.arange(32) + i for i in range(N)]).astype(np.int32)
    return {"rows": rows, "until": np.array(until)}


def trained(**options):
    arguments = {"data": source, "shared": SHARED, "each": own()} | options
    stage = arguments.pop("stage", the_stage())
    return members.run(stage, start(), KEYS, **arguments)


@pytest.fixture(scope="module")
def result():
    return trained()


def test_each_model_stops_on_its_own(result):
    taken = (~np.isnan(result.checks["score"])).sum(1)
    np.testing.assert_array_equal(taken, [3, 4, 6])  # its best epoch and two without gain
    np.testing.assert_array_equal(result.best_checks[0], [0, 1, 5])
    np.testing.assert_array_equal(
        ~np.isnan(result.metrics["loss"]), ~np.isnan(result.checks["score"])
    )


@pytest.mark.parametrize("i", range(N))
def test_a_model_is_as_if_it_were_alone(result, i):
    """One model through `stages.run_stage`, which has the same loop and other programs."""
    mine = {name: leaf[i] for name, leaf in own().items()}
    alone = jax.tree.map(lambda leaf: leaf[i], start())
    stage = the_stage()
    reads = {"shared": SHARED, "each": mine}
    stage = Stage(**{**vars(stage), "data": source(reads)})
    state, _ = stages.run_stage(stage, alone, KEYS[i], shared=reads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
        result.state.params,
        state.params,
    )


@pytest.mark.parametrize("how", [{"mode": "map"}, {"width": 2}, {"width": 2, "mode": "map"}])
def test_lanes_of_other_shapes_agree(result, how):
    other = trained(**how)
    np.testing.assert_array_equal(other.checks["score"], result.checks["score"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        other.state.params,
        result.state.params,
    )


@pytest.mark.parametrize("killed_after", [1, 2, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(result, killed_after, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, checks):
        if done == killed_after:
            raise Killed

    point = ResumePoint(tmp_path / "point")
    with pytest.raises(Killed):
        trained(point=point, callback=kill)
    seen = []
    again = trained(point=point, callback=lambda done, checks: seen.append(done))
    assert seen == list(range(killed_after + 1, EPOCHS + 1))
    assert_same(again, result)
    assert_same(trained(point=point, callback=lambda *_: pytest.fail("it was finished")), result)


def test_frozen_parameters_keep_their_bits():
    state = trained(stage=the_stage(trainable="dense/001/.*"))
    before, after = tree.named(start().params), tree.named(state.state.params)
    for name, leaf in after.items():
        assert np.array_equal(leaf, before[name]) == name.startswith("dense/000")


def test_models_of_another_stage_are_refused(tmp_path):
    point = ResumePoint(tmp_path / "point")
    trained(point=point)
    with pytest.raises(ValueError, match="00000.npz holds the progress of another stage or model"):
        trained(point=point, stage=the_stage(trainable="dense/001/.*"))


def test_stretches_of_equal_length_are_needed():
    for change in ({"check_start": True}, {"n_steps": 9}):
        with pytest.raises(ValueError, match="Stage train: n_steps is .* or `members.whole`"):
            trained(stage=Stage(**{**vars(the_stage()), **change}))
    with pytest.raises(ValueError, match="block is 6; block must be n_steps or a multiple of"):
        Stage(**{**vars(the_stage()), "block": 6})


def test_blocks_of_several_checks_and_none_at_all_take_the_same_steps(result):
    """A model that stops inside a block has NaN behind its end, not a number that is not finite."""
    longer = trained(stage=Stage(**{**vars(the_stage()), "block": 3 * PER_EPOCH}))
    assert_same(longer, result)
    endless = Stage(**{**vars(the_stage()), "stops": ()})
    blind = {"evaluate": None, "every": 1, "block": PER_EPOCH}
    seen = []
    unchecked = trained(
        stage=Stage(**{**vars(endless), **blind}), callback=lambda done, _: seen.append(done)
    )
    # Without checks it is another program, which newer versions of XLA round otherwise.
    chex.assert_trees_all_close(
        unchecked.state.params, trained(stage=endless).state.params, rtol=1e-5, atol=1e-6
    )
    assert unchecked.metrics["loss"].shape == (N, EPOCHS * PER_EPOCH) and unchecked.checks == {}
    assert seen == [PER_EPOCH * (i + 1) for i in range(EPOCHS)]


def test_whole_stages_take_the_same_steps_in_one_call(result):
    stage = the_stage()
    parts = jax.tree.map(np.asarray, {"state": start(), "each": own()})

    def begin(shared, member):
        reads = {"shared": shared, "each": member["each"]}
        return member["state"], reads

    def keep(result):
        return {"params": result.state.params, "best": result.best_checks[0]}

    function = members.whole(stage, begin, source, keep)
    many = parts | {"key": KEYS}
    whole = ensemble.run(function, SHARED, many, width=2)
    # The key of a member's stage is its key folded by "steps".
    keys = jax.vmap(lambda key: fold(key, "steps"))(KEYS)
    blocks = members.run(stage, start(), keys, data=source, shared=SHARED, each=own())
    np.testing.assert_array_equal(whole["best"], blocks.best_checks[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        whole["params"],
        jax.tree.map(np.asarray, blocks.state.params),
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_model_that_diverges_is_named():
    """And not taken for one that has ended, which NaN marks in a history."""
    spoilt = SHARED["x"].copy()
    spoilt[33] = np.inf  # that only model 2 reads: rows 2 to 33
    with pytest.raises(
        NonFiniteError, match="stage train: loss of model 2 is nan at check 0 of 1; a smaller"
    ):
        trained(shared=SHARED | {"x": spoilt})
