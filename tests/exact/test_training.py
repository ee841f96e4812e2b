"""Exactness: what is served after deletions is, bit for bit, a run that never saw the slices."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxunlearn.core import tree
from jaxunlearn.exact import deletion, orders, plan, prefixes, serving, sliceable
from jaxunlearn.nn.images import vit

CONFIG = vit.Config((8, 8, 1), 4, width=16, n_layers=7, n_heads=2, mlp_width=32, n_classes=3)
NETWORK = sliceable.of_vit(CONFIG)
RECIPE = plan.StageRecipe(
    rank=2, alpha=4.0, learning_rate=1e-2, epochs=2, batch_size=4, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(3, 3), 9, recipe=RECIPE, layers_per_slice=2, lane_width=3, seed=1)
N = 45


@functools.cache
def base():
    return jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])


def examples(seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, N).astype(np.int32)
    x = rng.normal(size=(N, 8, 8, 1)).astype(np.float32) + y[:, None, None, None]
    return {"x": x, "y": y}


PLACES = np.random.default_rng(7).permutation(np.arange(N) % 6)


def run(data, places, of=PLAN, **options):
    slices = prefixes.arrange(of, data, places)
    return prefixes.train(NETWORK, base(), of, slices, **options)


@functools.cache
def whole():
    return run(examples(), PLACES)


def weights_of(trained, of=PLAN):
    return serving.stacked(
        [
            [prefixes.assembled(of, trained, shard, order) for order in range(of.budget)]
            for shard in range(of.n_shards)
        ]
    )


def served_bits(trained, deleted):
    """Digest of what is served: adapters that are on, and heads."""
    served = deletion.served(deletion.surviving(PLAN.table, deleted))
    chosen = serving.chosen(PLAN, NETWORK, weights_of(trained), served)
    bits = []
    for shard, depth in enumerate(served.depth):
        if depth:
            part = jax.tree.map(lambda leaf, shard=shard: leaf[shard], chosen)
            on = part["on"].astype(bool)
            adapter = jax.tree.map(lambda leaf, on=on: leaf[on], part["adapter"])
            bits.append(tree.digest({"adapter": adapter, "head": part["head"]}))
        else:
            bits.append("dead")
    return bits


def test_a_prefix_is_trained_once_from_its_parents():
    trained = whole()
    assert len(trained) == 2 * (3 + 3 + 3)
    for stage in trained.values():
        for name, leaf in tree.named(stage["adapter"]).items():
            assert leaf.shape[0] == 2, name  # a group of layers
            if name.endswith("lora_b"):
                assert np.abs(leaf).max() > 0
        assert not np.array_equal(stage["head"]["kernel"], base()["head"]["kernel"])
    whole_plan = plan.make(1, orders.cyclic(3, 6), 9, recipe=RECIPE, layers_per_slice=2)
    assert [len(whole_plan.prefixes(level)) for level in (1, 2, 3)] == [3, 6, 6]


@pytest.mark.parametrize("slices", [1, 3])
def test_every_set_of_deleted_slices_is_as_if_it_had_never_been(slices):
    """Some sets of so many of the six slices; the other run has neither their data nor size."""
    trained = whole()
    for gone in some_sets(slices):
        deleted = np.isin(np.arange(6), gone).reshape(2, 3)
        never = run(examples(), np.where(np.isin(PLACES, gone), -1, PLACES))
        assert served_bits(trained, deleted) == served_bits(never, deleted)


def some_sets(n):
    """About three; the slow test has all."""
    every = list(itertools.combinations(range(6), n))
    return every[:: max(1, len(every) // 3)]


@pytest.mark.slow
def test_every_set_of_deleted_slices():
    trained = whole()
    for n in range(1, 6):
        for gone in itertools.combinations(range(6), n):
            deleted = np.isin(np.arange(6), gone).reshape(2, 3)
            never = run(examples(), np.where(np.isin(PLACES, gone), -1, PLACES))
            assert served_bits(trained, deleted) == served_bits(never, deleted)


def test_labels_and_sizes_of_a_deleted_slice_change_nothing():
    trained = whole()
    deleted = np.zeros((2, 3), bool)
    deleted[1, 2] = True
    other = examples()
    other["y"] = np.where(PLACES == 5, (other["y"] + 1) % 3, other["y"]).astype(np.int32)
    other["x"] = np.where(PLACES[:, None, None, None] == 5, 100.0, other["x"]).astype(np.float32)
    smaller = np.where((PLACES == 5) & (np.arange(N) % 2 == 0), -1, PLACES)
    for changed in (run(other, PLACES), run(examples(), smaller)):
        assert served_bits(changed, deleted) == served_bits(trained, deleted)
        assert served_bits(changed, ~deleted & False) != served_bits(trained, ~deleted & False)


def test_one_prefix_alone_has_the_same_bits_wherever_it_stood_in_its_lane():
    trained = whole()
    for prefix in [(0, (1, 2, 0)), (1, (2, 0)), (1, (0,))]:
        alone = run(examples(), PLACES, only=[prefix])
        assert set(alone) == {(prefix[0], prefix[1][:n]) for n in range(1, len(prefix[1]) + 1)}
        for key, stage in alone.items():
            assert tree.digest(stage) == tree.digest(trained[key])


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    def stop(level, done, total):
        if (level, done) == (2, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(examples(), PLACES, folder=tmp_path, progress=stop)
    seen = []
    resumed = run(examples(), PLACES, folder=tmp_path, progress=lambda *now: seen.append(now))
    assert (1, 6, 6) in seen and (1, 3, 6) not in seen  # the first level was read
    assert tree.digest({str(k): v for k, v in resumed.items()}) == tree.digest(
        {str(k): v for k, v in whole().items()}
    )


@pytest.mark.slow
def test_the_cache_changes_no_more_than_rounding():
    import dataclasses

    uncached = dataclasses.replace(PLAN, cached=False)
    alone = run(examples(), PLACES, of=uncached, only=[(0, (0, 1))])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-2, atol=1e-3),
        alone[0, (0, 1)],
        whole()[0, (0, 1)],
    )


def test_depths_are_served_by_one_program():
    weights, x = weights_of(whole()), {"x": examples()["x"][:10]}
    program = serving.outputs(NETWORK, PLAN)
    every = serving.all_outputs(NETWORK, PLAN, base(), weights, x, chunk=10)
    assert every.shape == (2, 3, 3, 10, 3)
    before = program._cache_size()
    for gone in ([], [0], [0, 4], [1, 2, 5]):
        deleted = np.isin(np.arange(6), gone).reshape(2, 3)
        served = deletion.served(deletion.surviving(PLAN.table, deleted))
        chosen = serving.chosen(PLAN, NETWORK, weights, served)
        alive = served.depth > 0
        got = serving.predict(NETWORK, PLAN, base(), chosen, x, alive, chunk=10)
        parts = [every[a, served.order[a], served.depth[a] - 1] for a in range(2) if alive[a]]
        np.testing.assert_allclose(got, np.mean(parts, axis=0), rtol=1e-6)
    assert program._cache_size() == before
    with pytest.raises(ValueError, match="no shard is alive"):
        serving.predict(NETWORK, PLAN, base(), chosen, x, np.zeros(2, bool))


def test_a_prefix_served_is_the_network_with_its_groups_on():
    """By hand: adapters merged into the layers of the first stages, and the head of the last."""
    from jaxunlearn.core import adapters

    weights, x = weights_of(whole()), examples()["x"][:4]
    chosen = serving.chosen(
        PLAN, NETWORK, weights, deletion.Served(np.array([1, 2]), np.array([2, 3]))
    )
    got = serving.outputs(NETWORK, PLAN)(base(), chosen, {"x": x})
    for shard, depth in ((0, 2), (1, 3)):
        order = [1, 2][shard]
        first = CONFIG.n_layers - 2 * depth
        part = prefixes.window(NETWORK, base(), PLAN, first, 7, jax.random.key(0))
        adapter = jax.tree.map(
            lambda leaf, s=shard, o=order, d=depth: leaf[s, o][6 - 2 * d :], weights["adapter"]
        )
        merged = adapters.merge(adapters.load(part, adapter))
        hidden = vit.build(CONFIG).apply(base(), {}, x, stop_at=first)[0]
        head = jax.tree.map(
            lambda leaf, s=shard, o=order, d=depth: leaf[s, o, d - 1], weights["heads"]
        )
        want = vit.build(CONFIG).apply(
            base() | merged | {"head": head}, {}, hidden, start_at=first
        )[0]
        np.testing.assert_allclose(got[shard], want, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_from_the_bottom_up_the_lowest_layers_train_first():
    import dataclasses

    from jaxunlearn.core import adapters

    up = dataclasses.replace(PLAN, direction="bottom_up")
    trained = run(examples(), PLACES, of=up, only=[(1, (1, 2, 0))])
    assert [up.group(level) for level in (1, 2, 3)] == [(0, 2), (2, 4), (4, 6)]
    # The second stage by hand: layers of the first one below it, frozen; the base above it.
    first, second = trained[1, (1,)], trained[1, (1, 2)]
    x = examples()["x"][:5]
    part = prefixes.window(NETWORK, base(), up, 1, 5, jax.random.key(0))
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), first["adapter"], second["adapter"])
    low = adapters.load(part, both)
    hidden = NETWORK.layers(base(), x, 0, 1)
    hidden = NETWORK.layers(low, hidden, 1, 5)
    hidden = NETWORK.layers(base(), hidden, 5, 7)
    want = NETWORK.outputs(base() | {"head": second["head"]}, hidden, {})
    order = prefixes.assembled(up, trained, 1, 2)
    weights = jax.tree.map(lambda leaf: np.stack([leaf] * 2)[:, None], order)
    served = deletion.Served(np.array([0, 0]), np.array([2, 2]))
    got = serving.outputs(NETWORK, up)(
        base(), serving.chosen(up, NETWORK, weights, served), {"x": x}
    )
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="direction is 'sideways'"):
        dataclasses.replace(PLAN, direction="sideways")


def test_known_stages_are_taken_as_they_are():
    trained = whole()
    known = {key: stage for key, stage in trained.items() if key[1][0] != 1 and len(key[1]) < 3}
    seen = []
    again = run(examples(), PLACES, known=known, progress=lambda *now: seen.append(now))
    assert (1, 0, 2) in seen and (3, 0, 6) in seen  # of six each
    for key, stage in trained.items():
        assert tree.digest(again[key]) == tree.digest(stage)


def test_plans_and_data_that_do_not_fit():
    with pytest.raises(ValueError, match="batch_size is 64; it must be at most capacity = 9"):
        plan.make(2, orders.cyclic(3, 1), 9)
    with pytest.raises(ValueError, match="it is no permutation"):
        plan.Plan((((0, 0),),), 64)
    with pytest.raises(ValueError, match="orders of shard 0 have one twice"):
        plan.Plan((((0, 1), (0, 1)),), 64)
    with pytest.raises(ValueError, match="slice 1 of shard 0 has 10 examples; the plan's capacity"):
        prefixes.arrange(PLAN, {"y": np.zeros(10)}, np.ones(10, int))
    with pytest.raises(ValueError, match="places are 0 to 6; -1 to 5 only"):
        prefixes.arrange(PLAN, {"y": np.zeros(2)}, np.array([0, 6]))
    deep = plan.make(1, orders.cyclic(4, 1), 9, recipe=RECIPE, layers_per_slice=2)
    with pytest.raises(ValueError, match="4 slices need 8 layers, and the network has 7"):
        prefixes.check_plan(NETWORK, deep)


NOISY = plan.StageRecipe(
    rank=2,
    alpha=4.0,
    learning_rate=1e-2,
    epochs=1,
    batch_size=4,
    dropout=0.2,
    augment=("crop", "flip"),
)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["top_down", "bottom_up"])
def test_dropout_and_augmentation_are_drawn_by_the_plan_and_the_prefix(direction):
    """So that other slices, and what trains beside it, change nothing of it."""
    config = dataclasses.replace(CONFIG, width=8, n_layers=2, mlp_width=8)
    network = sliceable.of_vit(config)
    params = jax.device_get(network.model.init(jax.random.key(0))[0])
    noisy = plan.make(
        1,
        orders.cyclic(2, 2),
        24,
        recipe=NOISY,
        layers_per_slice=1,
        cached=False,
        direction=direction,
    )

    def train(of, gone=(), **only):
        places = np.where(np.isin(PLACES % 2, gone), -1, PLACES % 2)
        return prefixes.train(network, params, of, prefixes.arrange(of, examples(), places), **only)

    trained = train(noisy)
    never = train(noisy, gone=[1], only=[(0, (0,))])
    assert tree.digest(never[0, (0,)]) == tree.digest(trained[0, (0,)])
    bits = {tree.digest(stage["head"]) for stage in trained.values()}
    assert len(bits) == 4
    if direction == "top_down":
        for change in ({"dropout": 0.0}, {"augment": ()}):
            other = dataclasses.replace(noisy, recipe=dataclasses.replace(NOISY, **change))
            bits.add(tree.digest(train(other, only=[(0, (0,))])[0, (0,)]["head"]))
        assert len(bits) == 6


def test_augmented_images():
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    recipe = dataclasses.replace(RECIPE, augment=("flip",))
    out = np.asarray(prefixes.augmentation(recipe)(jax.random.key(0), images))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(out[~mirrored], images[~mirrored])
    assert 20 < mirrored.sum() < 44
    recipe = dataclasses.replace(RECIPE, augment=("crop",))
    out = np.asarray(prefixes.augmentation(recipe)(jax.random.key(0), images))
    centre = {
        (out[i, 1:7, 1:7] == images[i, 1 + a : 7 + a, 1 + b : 7 + b]).all() and (a, b)
        for i in range(64)
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
    }
    assert len(centre - {False}) == 9
    none = prefixes.augmentation(RECIPE)(jax.random.key(0), images)
    np.testing.assert_array_equal(none, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: plan.StageRecipe(dropout=1.0), "dropout is 1.0"),
        (lambda: plan.StageRecipe(augment=("spin",)), r"augment has \['spin'\]; crop and flip"),
        (lambda: dataclasses.replace(PLAN, recipe=NOISY), "cached is True"),
    ],
)
def test_noise_that_is_not_known(change, message):
    with pytest.raises(ValueError, match=message):
        change()
