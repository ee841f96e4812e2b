"""Stacks of equal blocks beside a loop over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.model import stateless
from jaxunlearn.nn.layers.stacks import Stack

WIDTH, N = 3, 4


def _init(key):
    return {"w": jax.random.normal(key, (WIDTH, WIDTH))}, {}


def _apply(params, stats, x, shift, memory=None):
    x = jnp.tanh(x @ params["w"] + shift)
    return (x if memory is None else (x + memory, 2 * memory)), stats


STACK = Stack(stateless(_init, _apply), N)


@functools.cache
def params():
    return jax.jit(STACK.init)(jax.random.key(0))


X = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)
MEMORIES = np.random.default_rng(1).normal(size=(N, WIDTH)).astype(np.float32)


def loop(start, stop, memories=None):
    x, outs = np.asarray(X), []
    for i in range(start, stop):
        x = np.tanh(x @ np.asarray(params()["w"][i]) + 0.5)
        if memories is not None:
            x, outs = x + memories[i], [*outs, 2 * memories[i]]
    return x, np.stack(outs) if outs else None


run = jax.jit(STACK.run, static_argnames=("start", "stop", "unroll", "remat"))


def test_blocks_are_drawn_apart():
    assert params()["w"].shape == (N, WIDTH, WIDTH)
    assert len(np.unique(params()["w"])) == N * WIDTH * WIDTH


@pytest.mark.parametrize("how", [{}, {"unroll": 3}, {"unroll": N}, {"remat": True}], ids=str)
@pytest.mark.parametrize(("start", "stop"), [(0, N), (1, 3), (2, 2)])
def test_it_is_a_loop(start, stop, how):
    x, out = run(params(), X, 0.5, start=start, stop=stop, **how)
    np.testing.assert_allclose(x, loop(start, stop)[0], rtol=1e-5, atol=1e-6)
    assert out is None
    alone = jax.tree.map(lambda leaf: leaf[start:stop], params())
    again, _ = run(alone, X, 0.5, start=start, stop=stop, **how)
    np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize("unroll", [1, N])
def test_inputs_of_each_block(unroll):
    x, out = run(params(), X, 0.5, unroll=unroll, per_block=MEMORIES)
    expected, memories = loop(0, N, MEMORIES)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out, memories)


def test_bounds_and_numbers_that_do_not_fit():
    for start, stop in ((2, 1), (-1, 2), (0, 5)):
        with pytest.raises(ValueError, match=f"start is {start} and stop {stop}; 0 <= start"):
            STACK.run(params(), X, 0.5, start=start, stop=stop)
    three = jax.tree.map(lambda leaf: leaf[:3], params())
    with pytest.raises(ValueError, match="hold 3 layers; all 4 are needed, or those from 1 to 3"):
        STACK.run(three, X, 0.5, start=1, stop=3)


def test_no_blocks_give_no_outputs_and_inputs_of_a_wrong_number_are_named():
    x, outs = STACK.run(params(), X, 0.5, start=2, stop=2, unroll=N, per_block=MEMORIES)
    np.testing.assert_array_equal(x, X)
    assert outs.shape == (0, WIDTH)
    with pytest.raises(ValueError, match="per_block hold 3 layers; all 4 are needed"):
        STACK.run(params(), X, 0.5, per_block=MEMORIES[:3])
