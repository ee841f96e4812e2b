import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters import partial_eval as pe

from jaxunlearn import nn
from jaxunlearn.core import checkpoint, tree
from jaxunlearn.core.model import Statistics, from_nnx, predict
from jaxunlearn.nn.images import vit


class Deep(nnx.Module):
    """Twelve layers whose order matters: layer i multiplies by i + 1 and adds i."""

    def __init__(self, rngs):
        self.layers = nnx.List(nnx.Linear(1, 1, rngs=rngs) for _ in range(12))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, train=False, key=None):
        return self.dropout(self.dense(x), deterministic=not train, rngs=key)


class Hidden(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, *, return_hidden=False):
        hidden = self.dense(x)
        return (hidden, hidden * 2) if return_hidden else hidden * 2


def test_trees_are_plain_dicts_with_string_keys():
    params, stats = nn.cnn((8, 8, 1), batch_norm=True).init(jax.random.key(0))

    def check(node):
        if isinstance(node, dict):
            assert type(node) is dict and all(isinstance(key, str) for key in node)
            for value in node.values():
                check(value)

    check(params)
    check(stats)
    assert set(tree.named(stats)) == {
        f"norm/00{i}/{kind}" for i in (0, 1) for kind in ("mean", "var")
    }


def test_list_order_survives_a_checkpoint(tmp_path):
    model = from_nnx(Deep)
    params, _ = model.init(jax.random.key(0))
    assert list(params["layers"]) == [f"{i:03d}" for i in range(12)]
    for i, layer in enumerate(params["layers"].values()):
        layer["kernel"], layer["bias"] = jnp.full((1, 1), i + 1.0), jnp.full(1, float(i))
    expected = jnp.ones((1, 1))
    for i in range(12):
        expected = expected * (i + 1) + i
    checkpoint.save(tmp_path / "deep", params)
    restored = checkpoint.restore(tmp_path / "deep", params)
    for p in (params, restored):
        chex.assert_trees_all_close(model.apply(p, {}, jnp.ones((1, 1)))[0], expected)


def test_batch_statistics_stay_in_their_place():
    model = nn.cnn((8, 8, 1), batch_norm=True)
    params, stats = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1)) * 3 + 1
    _, after_eval = model.apply(params, stats, x)
    chex.assert_trees_all_equal(after_eval, stats)
    _, after_train = model.apply(params, stats, x, train=True)
    assert tree.digest(after_train) != tree.digest(stats)
    # Train mode normalises with the batch, so running statistics do not enter.
    moved = jax.tree.map(lambda s: s + 5.0, stats)
    chex.assert_trees_all_equal(
        model.apply(params, stats, x, train=True)[0], model.apply(params, moved, x, train=True)[0]
    )
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(
            model.apply(params, stats, x)[0], model.apply(params, moved, x)[0]
        )


def test_state_that_is_neither_parameter_nor_statistic_is_an_error():
    """And the message says what to do."""
    with pytest.raises(ValueError, match="rngs.*build `nnx.Dropout.rate.` without rngs.*rngs=key"):
        from_nnx(lambda rngs: nnx.Sequential(nnx.Dropout(0.5, rngs=rngs)))


# The three switches

NETWORKS = {
    "cnn": (lambda: nn.cnn((8, 8, 1), (2,), 3, batch_norm=True), (8, 8, 1)),
    "resnet9": (lambda: nn.resnet9(3, 1), (11, 11, 1)),
    "wide_resnet": (lambda: nn.wide_resnet(10, 1, 3, 1), (4, 4, 1)),
    "slim_cnn": (lambda: nn.slim_cnn((8, 8, 1), (2, 3), 3), (8, 8, 1)),
    "minimal_cnn": (lambda: nn.minimal_cnn((18, 18, 1), 3), (18, 18, 1)),
}
SWITCHES = ("train", "statistics", "update_statistics", "random")


def random_network(name):
    """A network with random numbers for parameters and statistics, and images."""
    build, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    draw = lambda like: rng.uniform(0.1, 0.5, like.shape).astype(np.float32)  # noqa: E731
    params, stats = jax.tree.map(draw, jax.eval_shape(build().init, jax.random.key(0)))
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    return build(), params, stats, x


def identical(one, other):
    return tree.digest(one) == tree.digest(other)


@pytest.mark.parametrize("name", ["cnn", "minimal_cnn"])
def test_each_switch_on_its_own(name):
    model, params, stats, x = random_network(name)
    compiled = jax.jit(model.apply, static_argnames=SWITCHES)
    apply = lambda **how: compiled(params, stats, x, **how)  # noqa: E731
    key = jax.random.key(0)
    train, evaluation = apply(train=True, key=key), apply()
    assert identical(evaluation[1], stats) and not identical(train[1], stats)
    # `train` is a name for all three.
    three = {"statistics": "batch", "update_statistics": True, "random": True}
    assert identical(apply(**three, key=key), train)
    three = {"statistics": "running", "update_statistics": False, "random": False}
    assert identical(apply(train=True, **three), evaluation)
    # Statistics of the batch without dropout, without update, and with it.
    batch, kept = apply(statistics="batch")
    assert identical(kept, stats) and not identical(batch, evaluation[0])
    again, updated = apply(statistics="batch", update_statistics=True)
    np.testing.assert_allclose(again, batch, atol=1e-5)
    first = next(iter(stats["norm"]))  # later layers see what dropout left
    chex.assert_trees_all_close(updated["norm"][first], train[1]["norm"][first], rtol=1e-5)
    # Dropout with running statistics, which then are not updated.
    noisy, kept = apply(train=True, statistics="running", key=key)
    assert identical(kept, stats)
    assert identical(noisy, evaluation[0]) == (name == "cnn")
    np.testing.assert_allclose(apply(random=True, key=key)[0], noisy, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_the_switches(name):
    """Which outputs read the running statistics; traced, not compiled."""
    model, params, stats, x = random_network(name)
    key = jax.random.key(0)

    def uses_running(**how):
        function = lambda stats: model.apply(params, stats, x, **how)[0]  # noqa: E731
        jaxpr, _ = pe.dce_jaxpr(jax.make_jaxpr(function)(stats).jaxpr, [True])
        return len(jaxpr.invars)

    n = len(jax.tree.leaves(stats))
    assert uses_running() == uses_running(statistics=0.5) == n
    assert uses_running(statistics="batch") == uses_running(train=True, key=key) == 0
    assert uses_running(train=True, key=key, statistics="running") == n


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"statistics": "mean"},
            "statistics is 'mean'; 'running', 'batch' or a number from 0 to 1",
        ),
        ({"statistics": 1.5}, "statistics is 1.5;"),
        ({"statistics": float("nan")}, "statistics is nan;"),
        ({"statistics": True}, "statistics is True;"),
        ({"statistics": np.ones(2)}, "statistics is array"),
        ({"update_statistics": 1}, "update_statistics is 1; True, False or None is needed"),
        ({"random": "no"}, "random is 'no'; True, False or None is needed"),
        ({"update_statistics": True}, "update_statistics is True with statistics 'running'"),
        (
            {"train": True, "statistics": "running", "update_statistics": True},
            "update_statistics is True with statistics 'running'",
        ),
    ],
)
@pytest.mark.parametrize("model", [nn.mlp(4, (), 2), from_nnx(Noisy)], ids=["mlp", "noisy"])
def test_a_switch_that_is_none(how, message, model):
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        model.apply(params, stats, jnp.ones((2, 4)), **how)


def test_switches_of_a_network_without_such_layers_change_nothing():
    config = vit.Config((4, 4, 1), 4, 4, 1, 1, 4, 2)
    for model, x in ((vit.build(config), np.ones((2, 4, 4, 1), np.float32)),
                     (nn.mlp(16, (), 2), np.ones((2, 16), np.float32))):  # fmt: skip
        params, stats = jax.eval_shape(model.init, jax.random.key(0))
        trace = lambda **how: str(  # noqa: E731
            jax.make_jaxpr(lambda p: model.apply(p, stats, x, **how))(params)  # noqa: B023
        )
        assert trace() == trace(train=True, key=jax.random.key(0)) == trace(statistics=0.5)
        with pytest.raises(ValueError, match="statistics is 2"):
            model.apply(params, stats, x, statistics=2)


def test_a_second_call_with_the_same_switches_compiles_nothing():
    model, params, stats, x = random_network("cnn")
    counted = chex.assert_max_traces(lambda *args, **how: model.apply(*args, **how), n=2)
    run = jax.jit(counted, static_argnames=SWITCHES)
    for how in ({"statistics": 0.25}, {"statistics": "batch", "update_statistics": True}) * 2:
        run(params, stats, x, **how)


class Plain(nnx.Module):
    """What a user writes: `train` alone."""

    def __init__(self, rngs):
        self.norm = nn.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, train=False, key=None):
        return self.dropout(self.norm(x, train), deterministic=not train, rngs=key)


def test_a_module_that_takes_train_alone():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model = from_nnx(Plain)
    params, stats = model.init(jax.random.key(0))
    key = jax.random.key(1)
    usual = model.apply(params, stats, x, train=True, key=key)
    three = {"statistics": "batch", "update_statistics": True, "random": True}
    assert identical(model.apply(params, stats, x, **three, key=key), usual)
    for how in (
        {"statistics": "batch"},
        {"train": True, "random": False},
        {"statistics": 0.5, "update_statistics": True, "random": True},
    ):
        with pytest.raises(ValueError, match="Plain.__call__ takes train, which stands for"):
            model.apply(params, stats, x, key=key, **how)
    # Without statistics it stands for random numbers.
    noisy = from_nnx(Noisy)
    params, stats = noisy.init(jax.random.key(0))
    one, _ = noisy.apply(params, stats, x, random=True, key=key)
    other, _ = noisy.apply(params, stats, x, train=True, key=key, statistics="running")
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"apply\(..., random=True\) needs key"):
        noisy.apply(params, stats, x, random=True)


class Named(nnx.Module):
    """A module that names its switches gets what was asked."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x, train, statistics, random):
        return train, statistics, random


def test_a_module_gets_the_switches_that_it_names():
    model = from_nnx(Named)
    params, stats = model.init(jax.random.key(0))
    asked = lambda **how: model.apply(params, stats, 0, **how)[0]  # noqa: E731
    assert asked() == (False, Statistics("running", False), False)
    assert asked(train=True) == (True, Statistics("batch", True), True)
    assert asked(train=True, random=False) == (True, Statistics("batch", True), False)
    assert asked(statistics=0.5) == (False, Statistics(0.5, False), False)


def test_training_without_a_key_is_an_error_where_a_key_is_drawn():
    model = from_nnx(Noisy)
    params, stats = model.init(jax.random.key(0))
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="needs key"):
        model.apply(params, stats, x, train=True)
    model.apply(params, stats, x)  # evaluation needs none
    first, _ = model.apply(params, stats, x, train=True, key=jax.random.key(1))
    again, _ = model.apply(params, stats, x, train=True, key=jax.random.key(1))
    other, _ = model.apply(params, stats, x, train=True, key=jax.random.key(2))
    chex.assert_trees_all_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_static_switches_reach_the_network():
    model = from_nnx(Hidden)
    params, _ = model.init(jax.random.key(0))
    hidden, output = model.apply(params, {}, jnp.ones((1, 2)), return_hidden=True)[0]
    chex.assert_trees_all_close(hidden * 2, output)


def test_a_tree_of_another_network_is_an_error():
    model = nn.mlp(4, (8,), 3)
    params, stats = nn.mlp(4, (8, 8), 3).init(jax.random.key(0))
    with pytest.raises(ValueError, match="'002'.*needs"):
        model.apply(params, stats, jnp.ones((1, 4)))


def test_init_can_be_mapped_over_keys():
    model = nn.mlp(4, (8,), 3)
    many = jax.random.split(jax.random.key(0), 3)
    params, _ = jax.vmap(model.init)(many)
    one, _ = model.init(many[1])
    chex.assert_trees_all_close(jax.tree.map(lambda p: p[1], params), one, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 20, 21, 50])
def test_predictions_in_chunks_are_those_of_all_at_once(n):
    model = nn.cnn((8, 8, 1), (2,), batch_norm=True)
    params, stats = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (n, 8, 8, 1))
    whole, _ = model.apply(params, stats, x)
    np.testing.assert_allclose(predict(model, params, stats, x, chunk=20), whole, atol=1e-5)
