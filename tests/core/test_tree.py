import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.core import tree

names = st.text("abcxyz_0189", min_size=1, max_size=4)
trees = st.recursive(
    st.builds(np.arange, st.integers(1, 5)),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda t: isinstance(t, dict))


@given(trees, st.randoms(use_true_random=False))
def test_combine_undoes_partition(params, random):
    mask = jax.tree.map(lambda _: random.random() < 0.5, params)
    selected, rest = tree.partition(params, mask)
    assert tree.size(selected) + tree.size(rest) == tree.size(params)
    chex.assert_trees_all_equal(tree.combine(selected, rest), params)
    chex.assert_trees_all_equal(tree.combine(rest, selected), params)


@given(trees)
def test_nested_undoes_named(params):
    chex.assert_trees_all_equal(tree.nested(tree.named(params)), params)


def test_size_counts_scalars():
    params = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(())}}
    assert tree.size(params) == 7
    assert tree.size(jax.eval_shape(lambda: params)) == 7
    assert tree.size({}) == 0


def test_select_matches_whole_names():
    params = {"a": {"kernel": 1.0, "bias": 2.0}, "ab": {"kernel": 3.0}}
    assert tree.select(params, "a/.*") == {
        "a": {"kernel": True, "bias": True},
        "ab": {"kernel": False},
    }
    both = tree.select(params, ("a/bias", "ab/kernel"))
    assert tree.named(both) == {"a/bias": True, "a/kernel": False, "ab/kernel": True}


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'dense/.*' matches no parameter.* a/kernel"):
        tree.select({"a": {"kernel": 1.0}}, ("a/.*", "dense/.*"))


def test_combine_refuses_two_leaves_in_one_place():
    with pytest.raises(ValueError, match="same place"):
        tree.combine({"a": 1.0}, {"a": 2.0})


def test_digest_sees_names_shapes_types_and_bits():
    base = {"a": np.zeros(4, np.float32)}
    others = [
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
    ]
    assert len({tree.digest(t) for t in [base, *others]}) == 5
    assert tree.digest(base) == tree.digest(jax.tree.map(jnp.asarray, base))


def test_taking_undoes_stacking():
    trees = [
        {"a": np.full(3, i), "b": {"c": jnp.full(2, i), "key": jax.random.key(i)}} for i in (4, 5)
    ]
    stacked = tree.stack(trees)
    assert isinstance(stacked["a"], np.ndarray) and stacked["b"]["c"].shape == (2, 2)
    for i, one in enumerate(trees):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), tree.take(stacked, i), one))


def test_two_leaves_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="two leaves have the name 'a/b'"):
        tree.named({"a/b": 1.0, "a": {"b": 2.0}})
