"""Convolutions in tiles are convolutions, whatever the tiles."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.nn.cpu import batch_last, tiles

# C, F, k, H, W, B, padding
SHAPES = [
    (2, 3, 3, 6, 7, 8, 0),
    (3, 2, 3, 5, 4, 35, 1),
    (1, 4, 1, 3, 3, 64, 0),
    (2, 2, 5, 9, 6, 33, 2),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((padding, padding),) * 2, dimension_numbers=("CHWN", "HWIO", "CHWN")
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cache", [1, 3000, 10**9])
def test_values_and_gradients(shape, cache, monkeypatch):
    monkeypatch.setattr(tiles, "_CACHE", cache)
    n_in, n_out, size, height, width, n_images, padding = shape
    x, kernel = normal(n_in, height, width, n_images), normal(size, size, n_in, n_out, seed=1)
    g = normal(*jax.eval_shape(lambda x: plain(x, kernel, padding), x).shape, seed=2)

    def pulled(conv):
        def run(x, kernel, g):
            y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, padding), x, kernel)
            return y, pull(g)

        return jax.jit(run)(x, kernel, g)

    # New functions each time: a compiled one would keep the tiles of another cache.
    ours = pulled(lambda *a: tiles.conv(*a))
    chex.assert_trees_all_close(ours, pulled(plain), rtol=1e-4, atol=1e-4)


def test_several_models_at_once(monkeypatch):
    monkeypatch.setattr(tiles, "_CACHE", 3000)
    x, kernel = normal(2, 3, 5, 5, 9), normal(2, 3, 3, 3, 4, seed=1)
    loss = lambda conv: lambda x, kernel: jnp.sum(conv(x, kernel, 1) ** 2)  # noqa: E731
    ours = jax.jit(jax.vmap(jax.grad(loss(tiles.conv), (0, 1))))(x, kernel)
    theirs = jax.jit(jax.vmap(jax.grad(loss(plain), (0, 1))))(x, kernel)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_large_batches_are_tiled(monkeypatch):
    """And the result is that of small ones."""
    x, kernel = normal(2, 6, 6, 12), normal(3, 3, 2, 4, seed=1)
    run = lambda: jax.jit(lambda x, kernel: batch_last.conv(x, kernel, 1))(x, kernel)  # noqa: E731
    small = run()
    calls = []
    conv = tiles.conv
    monkeypatch.setattr(tiles, "conv", lambda *a: calls.append(a) or conv(*a))
    monkeypatch.setattr(batch_last, "_MOST", tiles.n_bytes(x, kernel, 1))
    run()
    assert not calls and tiles.n_bytes(x, kernel, 1) == 4 * 9 * 2 * 36 * 12
    monkeypatch.setattr(batch_last, "_MOST", 0)
    np.testing.assert_allclose(run(), small, rtol=1e-4, atol=1e-5)
    assert calls
