import jax
import pytest

from jaxunlearn.core import keys


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_same_parts_same_key_different_parts_different_keys():
    root = jax.random.key(0)
    purposes = [("a",), ("b",), ("a", 0), ("a", 1), (0, "a"), ("a", "b"), ("b", "a"), ()]
    assert len({bits(keys.fold(root, *parts)) for parts in purposes}) == len(purposes)
    assert bits(keys.fold(root, "a", 1)) == bits(keys.fold(root, "a", 1))


def test_traced_numbers_give_the_same_key():
    root = jax.random.key(3)
    traced = jax.jit(lambda t: jax.random.key_data(keys.fold(root, "step", t)))(5)
    assert tuple(traced.tolist()) == bits(keys.fold(root, "step", 5))


def test_strings_hash_the_same_in_every_process():
    # Python's own hash of strings is salted per process; this number must never change.
    expected = jax.random.fold_in(jax.random.key(0), 3262944105)
    assert bits(keys.fold(jax.random.key(0), "stage")) == bits(expected)


@pytest.mark.parametrize("part", ["init", 7])
def test_keys_can_be_mapped(part):
    ks = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda k: keys.fold(k, part))(ks)
    assert [bits(k) for k in mapped] == [bits(keys.fold(k, part)) for k in ks]
