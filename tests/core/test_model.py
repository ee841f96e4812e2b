import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn
from jaxunlearn.core import checkpoint, tree
from jaxunlearn.core.model import from_nnx, predict


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
    with pytest.raises(ValueError, match="Dropout.*rngs|rngs"):
        from_nnx(lambda rngs: nnx.Sequential(nnx.Dropout(0.5, rngs=rngs)))


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
