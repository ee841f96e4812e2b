import dataclasses
import itertools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import nn
from jaxunlearn.core import (
    Stage,
    checkpoint,
    ema,
    keys,
    loop,
    members,
    optimizers,
    records,
    resume,
    stages,
    step,
    tree,
)
from jaxunlearn.core.disk import DamagedError

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def setting(small):
    model, params, stats, batch_of = small
    optimizer = optimizers.sgd(0.05, momentum=0.9, weight_decay=0.1)
    objective = step.supervised(model)

    def stage(name, **keyed):
        keyed = dict(n_steps=6, optimizer=optimizer) | keyed
        return Stage(name, objective, batch_of, **keyed)

    return stage, step.init_state(params, optimizer, stats)


def insertions(forget, others):
    return [tuple([*others[:i], forget, *others[i:]]) for i in range(len(others) + 1)]


@pytest.mark.parametrize(
    ("orders", "runs"),
    [
        (insertions("u", ("a", "b", "c")), 13),  # of 16
        (list(itertools.permutations("abcu")), 64),  # of 96
    ],
)
def test_orders_share_prefixes_bit_for_bit(setting, orders, runs, monkeypatch):
    stage, state = setting
    by_name = {name: stage(name) for name in "abcu"}
    count = 0
    real = stages.run_stage

    def counted(*args, **keyed):
        nonlocal count
        count += 1
        return real(*args, **keyed)

    monkeypatch.setattr(stages, "run_stage", counted)
    states = stages.run_orders(by_name, orders, state, KEY)
    assert count == runs == len(states) - 1
    for order in orders[:: max(1, len(orders) // 4)]:
        alone = stages.run([by_name[name] for name in order], state, KEY)
        assert tree.digest(alone.state) == tree.digest(states[order])
    finals = {tree.digest(states[order].params) for order in orders}
    assert len(finals) == len(orders)  # orders matter


def test_no_stage_compiles_again(setting):
    stage, state = setting
    stages.run([stage("a")], state, KEY)
    size = loop.advance._cache_size()
    stages.run([stage("x"), stage("y"), stage("x")], state, KEY)
    assert loop.advance._cache_size() == size


def test_stage_of_may_depend_on_the_whole_prefix(setting, tmp_path):
    stage, state = setting
    asked = []

    def stage_of(prefix):
        asked.append(prefix)
        return stage("slice", n_steps=2 * len(prefix), seed_by="prefix")

    orders = [(0, 1), (1, 0), (0, 2)]
    states = stages.run_orders(stage_of, orders, state, KEY)
    assert asked == [(0,), (0, 1), (1,), (1, 0), (0, 2)]
    assert [int(states[p].step) for p in [(0,), (0, 1)]] == [2, 6]
    # All stages have one name, and still every prefix has its own randomness and its snapshot.
    assert len({tree.digest(s.params) for s in states.values()}) == 6
    for _ in range(2):
        kept = stages.run_orders(stage_of, orders, state, KEY, snapshots=tmp_path)
        assert {p: tree.digest(s) for p, s in kept.items()} == {
            p: tree.digest(s) for p, s in states.items()
        }


def test_snapshots_of_another_run_are_refused(setting, tmp_path):
    stage, state = setting
    stages.run([stage("a")], state, KEY, snapshots=tmp_path)
    other = dataclasses.replace(state, params=jax.tree.map(lambda p: p + 1, state.params))
    for plan, start, key in [
        ([stage("a", n_steps=7)], state, KEY),
        ([stage("a", trainable="dense/000/.*")], state, KEY),
        ([stage("a")], other, KEY),
        ([stage("a")], state, jax.random.key(0)),
    ]:
        with pytest.raises(ValueError, match="comes from another start, key or other stages"):
            stages.run(plan, start, key, snapshots=tmp_path)
    with pytest.raises(ValueError, match="gives no file name"):
        stages.run_orders({"a/b": stage("a")}, [("a/b",)], state, KEY, snapshots=tmp_path)


def test_randomness_comes_from_name_and_occurrence_or_from_the_prefix(setting):
    stage, _ = setting
    by_name, by_prefix = stage("a"), stage("a", seed_by="prefix")

    def bits(one, *before):
        key = stages.stage_key(one, KEY, before, (*before, "a"))
        return tuple(jax.random.key_data(key).tolist())

    assert bits(by_name, "b", "c") == bits(by_name)
    assert bits(by_name, "a") != bits(by_name)
    assert len({bits(by_prefix, "b"), bits(by_prefix, "c"), bits(by_prefix)}) == 3


def test_frozen_leaves_are_bit_identical_with_weight_decay(setting):
    stage, state = setting
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    after = stages.run([stage("a", trainable="dense/001/.*", optimizer=optimizer)], state, KEY)
    frozen = after.state.params["dense"]["000"]
    chex.assert_trees_all_equal(frozen, state.params["dense"]["000"])
    assert tree.digest(after.state.params["dense"]["001"]) != tree.digest(
        state.params["dense"]["001"]
    )


def test_progressive_unfreezing(setting):
    stage, state = setting
    thaw = stages.unfreezing(stage("thaw"), ["dense/001/bias", "dense/001/kernel", "dense/000/.*"])
    assert [s.name for s in thaw] == ["thaw.0", "thaw.1", "thaw.2"]
    changed = []
    for one in thaw:
        after = stages.run([one], state, KEY).state
        before = tree.named(state.params)
        now = tree.named(after.params)
        changed.append({name for name in now if not jnp.array_equal(now[name], before[name])})
    assert changed == [
        {"dense/001/bias"},
        {"dense/001/bias", "dense/001/kernel"},
        set(tree.named(state.params)),
    ]


def test_carry_goes_on_with_the_momentum_and_fresh_does_not(setting):
    stage, state = setting
    for kind, equal in (("carry", True), ("fresh", False)):
        halves = [stage("a", n_steps=3), stage("b", n_steps=3, optimizer_state=kind)]
        cut = stages.run(halves, state, KEY).state
        # The same six steps with one optimizer state, by hand.
        take = step.gradient_step(step.with_frozen(halves[0].objective), halves[0].optimizer)
        shared = {"frozen": jax.tree.map(lambda _: None, state.params), "shared": None}
        whole = state
        for part in halves:
            before = ("a",) if part.name == "b" else ()
            key = stages.stage_key(part, KEY, before, (*before, part.name))
            whole, _ = loop.scan(take, whole, shared, part.data, key, 3)
        same = all(
            np.allclose(a, b, rtol=1e-5, atol=1e-6)
            for a, b in zip(jax.tree.leaves(cut.params), jax.tree.leaves(whole.params), strict=True)
        )
        assert same == equal
    with pytest.raises(ValueError, match="b: optimizer_state='carry'.*use 'fresh'"):
        stages.run(
            [stage("a", trainable="dense/000/.*"), stage("b", optimizer_state="carry")], state, KEY
        )


def test_a_run_resumes_from_its_snapshots_to_the_same_bits(setting, tmp_path, monkeypatch):
    stage, state = setting
    plan = [stage("a"), stage("b", trainable="dense/001/.*"), stage("a", optimizer=optax.adam(0.1))]
    whole = stages.run(plan, state, KEY)
    stages.run(plan[:2], state, KEY, snapshots=tmp_path)  # interrupted after two stages
    ran = []
    real = stages.run_stage
    monkeypatch.setattr(
        stages, "run_stage", lambda s, *a, **k: (ran.append(s.name), real(s, *a, **k))[1]
    )
    resumed = stages.run(plan, state, KEY, snapshots=tmp_path)
    assert ran == ["a"]
    assert tree.digest(resumed.state) == tree.digest(whole.state)
    assert len(resumed.history) == 1
    again = stages.run(plan, state, KEY, snapshots=tmp_path)
    assert ran == ["a"] and tree.digest(again.state) == tree.digest(whole.state)


def test_wrapped_steps_and_evaluation_see_what_they_need(setting):
    stage, state = setting
    seen = lambda state, shared: {"size": jnp.float32(tree.size(state.params)) + shared}  # noqa: E731
    one = stage(
        "a",
        trainable="dense/001/.*",
        wrap=lambda take: ema.with_ema(take, 0.5),
        evaluate=seen,
        every=3,
    )
    after = stages.run([one], ema.start(state), KEY, shared=1.0)
    expected = tree.size(state.params) + 1
    np.testing.assert_array_equal(after.history[0].checks["size"], [expected, expected])
    average = after.state.extra["ema"]["dense"]
    chex.assert_trees_all_equal(average["000"], state.params["dense"]["000"])
    assert tree.digest(average["001"]) != tree.digest(after.state.params["dense"]["001"])


def test_batch_norm_statistics_pass_through_stages():
    model = nn.cnn((4, 4, 1), (2,), 2, batch_norm=True)
    params, stats = model.init(jax.random.key(0))
    optimizer = optimizers.sgd(0.1)

    def data(key, t):
        x = jax.random.normal(jax.random.fold_in(key, t), (8, 4, 4, 1)) + 3
        return {"x": x, "y": (x.sum((1, 2, 3)) > 48).astype(int)}

    one = Stage("bn", step.supervised(model), data, optimizer, 5, trainable="head/.*")
    after = stages.run([one], step.init_state(params, optimizer, stats), KEY).state
    assert set(tree.named(after.params)) == set(tree.named(params))
    assert set(tree.named(after.stats)) == set(tree.named(stats))
    assert tree.digest(after.stats) != tree.digest(stats)
    chex.assert_trees_all_equal(after.params["conv"], params["conv"])


@pytest.mark.parametrize(
    ("name", "keyed", "message"),
    [
        ("a/b", {}, "name is 'a/b'"),
        ("a", dict(optimizer_state="keep"), "optimizer_state is 'keep'"),
        ("a", dict(seed_by="time"), "seed_by is 'time'"),
        ("a", dict(n_steps=0), "Stage a: n_steps is 0"),
        ("a", dict(n_steps=2.0), "Stage a: n_steps is 2.0"),
        ("a", dict(every=0), "Stage a: every is 0"),
        ("a", dict(block=0), "Stage a: block is 0"),
        ("a", dict(check_start=True), "Stage a: at_start: a check needs evaluate"),
        ("a", dict(optimizer=0.1), "Stage a: optimizer is 0.1"),
        ("a", dict(wrap="ema"), "Stage a: wrap is .ema.; a function"),
        ("a", dict(evaluate="loss"), "Stage a: evaluate is 'loss'; a function"),
        ("a", dict(stops=loop.EarlyStop("v", 1)), "Stage a: stops is EarlyStop"),
        ("a", dict(evaluate=print, stops=["v"]), "Stage a: stops is"),
        ("a", dict(trainable=None), "Stage a: trainable is None"),
        ("a", dict(trainable=("a", "(")), "Stage a: trainable has '\\('"),
        (1, {}, "name is 1"),
    ],
)
def test_bad_stages(setting, name, keyed, message):
    with pytest.raises(ValueError, match=message):
        setting[0](name, **keyed)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([], "orders is empty"),
        ("ab", "orders has 'a'; tuples of elements"),
        ([("a", "c")], "orders has 'c'; stage_of has stages for 'a', 'b'"),
        ([3], "orders has 3; tuples of elements"),
    ],
)
def test_bad_orders(setting, orders, message):
    stage, state = setting
    with pytest.raises(ValueError, match=message):
        stages.run_orders({name: stage(name) for name in "ab"}, orders, state, KEY)


def test_a_trainable_pattern_without_a_match_is_an_error(setting):
    stage, state = setting
    with pytest.raises(ValueError, match="'head/.*' matches no parameter"):
        stages.run([stage("a", trainable="head/.*")], state, KEY)


def test_a_stage_killed_in_the_middle_goes_on_from_its_last_block(setting, tmp_path):
    stage, state = setting
    by_name = {name: stage(name, block=2) for name in "ab"}
    whole = stages.run_orders(by_name, [("a", "b")], state, KEY)
    one_block = stages.run_orders({n: stage(n) for n in "ab"}, [("a", "b")], state, KEY)
    assert tree.digest(whole["a", "b"]) == tree.digest(one_block["a", "b"])

    def killed(prefix, done, total):
        seen.append((prefix, done, total))
        if prefix == ("a", "b") and done == 4:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        stages.run_orders(by_name, [("a", "b")], state, KEY, snapshots=tmp_path, callback=killed)
    assert seen == [(("a",), i, 6) for i in (2, 4, 6)] + [(("a", "b"), i, 6) for i in (2, 4)]
    seen = []
    resumed = stages.run_orders(
        by_name,
        [("a", "b")],
        state,
        KEY,
        snapshots=tmp_path,
        callback=lambda *now: seen.append(now),
    )
    # The block of the kill was not on disk yet.
    assert seen == [(("a",), 6, 6), (("a", "b"), 4, 6), (("a", "b"), 6, 6)]
    for prefix in whole:
        assert tree.digest(resumed[prefix]) == tree.digest(whole[prefix])
    assert not list(tmp_path.glob("*.partial*"))


def test_members_of_a_stage_train_together_as_they_would_alone(setting, tmp_path):
    stage, state = setting
    one = stage("a", optimizer=optax.adam(1e-2))
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), state.params)
    start, runner = members.init(params), members.runner(2)
    together = stages.run([one], start, KEY, runner=runner, snapshots=tmp_path)
    assert together.history[0].metrics["loss"].shape == (2, 6)
    assert together.state.step.tolist() == [6, 6]
    take, key = step.gradient_step(one.objective, one.optimizer), stages.stage_key(one, KEY, (), ())
    take = jax.jit(take)
    for i in range(2):
        alone = step.init_state(tree.take(params, i), one.optimizer)
        for t in range(6):
            batch = one.data(keys.fold(key, "data", "member", i), t)
            alone, _ = take(alone, None, batch, KEY)
        mine = tree.take(together.state.params, i)
        chex.assert_trees_all_close(mine, alone.params, rtol=1e-4, atol=1e-5)
    # Read from the snapshot, also by another stage that goes on from there.
    again = stages.run([one], start, KEY, runner=runner, snapshots=tmp_path)
    assert tree.digest(again.state) == tree.digest(together.state) and again.history == ()
    # The first member's bits are the same beside any others as long as their number is.
    other = members.init(jax.tree.map(lambda p: jnp.stack([p, -p]), state.params))
    again = stages.run([one], other, KEY, runner=runner)
    first = [tree.take(s.state.params, 0) for s in (together, again)]
    chex.assert_trees_all_equal(*first)


def test_members_draw_apart_and_go_on_from_their_last_block(setting, tmp_path):
    """What a step draws depends on the member too, and a killed stage resumes to the same bits."""
    stage, state = setting

    def noisy(params, stats, shared, batch, key):
        return jnp.sum(params["w"]) * 0, (stats, {"drawn": jax.random.normal(key)})

    one = stage("a", block=2)
    one = dataclasses.replace(one, objective=noisy)
    start, runner = members.init({"w": jnp.zeros((3, 2))}), members.runner(3)
    whole = stages.run([one], start, KEY, runner=runner).history[0]
    drawn, key = whole.metrics["drawn"], stages.stage_key(one, KEY, (), ())
    wanted = jax.random.normal(keys.fold(key, "step", 4, "member", 2))
    np.testing.assert_array_equal(drawn[2, 4], wanted)
    assert len(np.unique(drawn)) == drawn.size

    def killed(prefix, done, total):
        if done == 4:
            raise KeyboardInterrupt

    arguments = ({"a": one}, [("a",)], start, KEY)
    keyed = {"runner": runner, "snapshots": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        stages.run_orders(*arguments, **keyed, callback=killed)
    seen = []
    resumed = stages.run_orders(*arguments, **keyed, callback=lambda *now: seen.append(now))
    assert seen == [(("a",), 6, 6)]  # the four steps before were on disk
    plain = stages.run_orders(*arguments, runner=runner)
    assert tree.digest(resumed["a",]) == tree.digest(plain["a",])
    assert not list(tmp_path.glob("*.partial*"))


def test_a_kill_while_the_first_progress_is_written_costs_no_more_than_that_progress(
    setting, tmp_path
):
    stage, state = setting
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / ".00000.npz.4711").write_bytes(b"half")
    resumed = stages.run([stage("a", block=2)], state, KEY, snapshots=tmp_path)
    whole = stages.run([stage("a", block=2)], state, KEY)
    chex.assert_trees_all_equal(resumed.state.params, whole.state.params)


def test_damaged_snapshots_are_named(setting, tmp_path):
    stage, state = setting
    plan = [stage("a"), stage("b")]
    whole = stages.run(plan, state, KEY, snapshots=tmp_path)
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file() and file.stat().st_size]
    assert {"a.json", "a+b.json"} < {file.name for file in files}
    for file in files:
        raw = file.read_bytes()
        at = len(raw) // 3
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(DamagedError, match=f"{re.escape(str(file))} is damaged"):
            stages.run(plan, state, KEY, snapshots=tmp_path)
        file.write_bytes(raw)
    again = stages.run(plan, state, KEY, snapshots=tmp_path)
    assert tree.digest(again.state) == tree.digest(whole.state)


def test_snapshots_under_another_configuration_are_refused(setting, tmp_path, monkeypatch):
    stage, state = setting
    stages.run([stage("a")], state, KEY, snapshots=tmp_path)
    point = resume.ResumePoint(tmp_path / "b.partial")
    point.write(state)
    record = json.loads((tmp_path / "a.json").read_text())
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_option=1")
    with pytest.raises(ValueError, match=r"a' has configuration.LIBTPU_INIT_ARGS.xla_tpu"):
        stages.run([stage("a")], state, KEY, snapshots=tmp_path)
    with pytest.raises(ValueError, match=r"b.partial' has configuration.LIBTPU_INIT_ARGS"):
        point.read(state)
    # An earlier version did not write it.
    del record["configuration"], record["sha256"]
    records.write(tmp_path / "a.json", record)
    stages.run([stage("a")], state, KEY, snapshots=tmp_path)


def test_what_a_kill_left_of_a_finished_stage_is_removed(setting, tmp_path):
    stage, state = setting
    stages.run([stage("a")], state, KEY, snapshots=tmp_path)
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "00000.npz").write_bytes(b"damaged")
    stages.run([stage("a")], state, KEY, snapshots=tmp_path)
    assert not (tmp_path / "a.partial").exists()


def test_a_folder_of_snapshots_holds_no_links(setting, tmp_path):
    stage, state = setting
    (tmp_path / "outside").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.partial").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="a.partial is a link"):
        stages.run([stage("a", block=2)], state, KEY, snapshots=tmp_path / "kept")
    assert not list((tmp_path / "outside").iterdir())


def test_progress_of_an_earlier_version_is_refused(setting, tmp_path):
    """It was an orbax checkpoint in the same place."""
    stage, state = setting
    checkpoint.save(tmp_path / "a.partial", {"x": jnp.zeros(2)})
    with pytest.raises(ValueError, match="a.partial holds a progress that an earlier version"):
        stages.run([stage("a", block=2)], state, KEY, snapshots=tmp_path)
