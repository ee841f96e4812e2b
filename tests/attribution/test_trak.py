"""TRAK: projected gradients, scores, and what they predict."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.attribution import trak
from jaxunlearn.core import losses
from jaxunlearn.core.checkpoint import BlockStore

KEY = jax.random.key(0)


def network():
    model = nn.mlp(6, (5,), 3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), rng.integers(0, 3, 20)
    return model, *model.init(jax.random.key(1)), x, y


@pytest.mark.parametrize(("n", "dim"), [(30, 8), (8, 30)])
def test_scores_are_a_direct_solve(n, dim):
    rng = np.random.default_rng(0)
    phi, targets, weights = rng.normal(size=(n, dim)), rng.normal(size=(5, dim)), rng.random(n)
    found = trak.scores(phi, targets, weights=weights, l2=0.3)
    inverse = np.linalg.inv(phi.T @ phi + 0.3 * np.eye(dim))
    np.testing.assert_allclose(found, np.diag(weights) @ phi @ inverse @ targets.T, atol=1e-12)


def test_without_a_penalty_the_features_need_full_rank():
    rng = np.random.default_rng(0)
    phi, targets = rng.normal(size=(30, 8)), rng.normal(size=(5, 8))
    inverse = np.linalg.inv(phi.T @ phi)
    found = trak.scores(phi, targets, weights=np.ones(30), l2=0.0)
    np.testing.assert_allclose(found, phi @ inverse @ targets.T, atol=1e-12)
    with pytest.raises(ValueError, match="full rank"):
        trak.scores(targets, targets, weights=np.ones(5), l2=0.0)


@pytest.mark.parametrize("output", [trak.margin, trak.all_logits])
def test_features_are_projected_gradients(output):
    model, params, stats, x, y = network()
    found = trak.features(
        model, params, stats, x, y, KEY, dim=16, output=output, chunk=7, projection="normal"
    )
    leaves, structure = jax.tree.flatten(params)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]
    identity = jnp.eye(sum(leaf.size for leaf in leaves))
    matrix = trak.project(identity, KEY, 16, "normal")

    def outputs(flat, x, y):
        parts = [
            p.reshape(leaf.shape) for p, leaf in zip(jnp.split(flat, sizes), leaves, strict=True)
        ]
        logits, _ = model.apply(jax.tree.unflatten(structure, parts), stats, x[None])
        return output(logits[0], y)

    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    for i in (0, 6, 7, 19):
        wanted = jax.jacfwd(outputs)(flat, x[i], y[i]) @ matrix
        np.testing.assert_allclose(found[i], wanted, atol=1e-5)
    assert found.shape == (20, 1 if output is trak.margin else 3, 16)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_projections_keep_inner_products(kind):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 5000)).astype(np.float32)  # three blocks of rows
    projected = trak.project(vectors, KEY, 4096, kind)
    scale = np.linalg.norm(vectors, axis=1)
    cosines = (projected @ projected.T) / np.outer(scale, scale)
    np.testing.assert_allclose(cosines, vectors @ vectors.T / np.outer(scale, scale), atol=0.08)
    assert not np.array_equal(projected, trak.project(vectors, jax.random.key(5), 4096, kind))


def test_features_go_on_where_they_stopped(tmp_path):
    model, params, stats, x, y = network()
    store = BlockStore(tmp_path)
    run = functools.partial(
        trak.features, model, params, stats, x, y, KEY, dim=8, chunk=6, store=store
    )
    whole = trak.features(model, params, stats, x, y, KEY, dim=8, chunk=6)

    def stop(done):
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callback=stop)
    assert 1 in store
    assert 2 not in store
    np.testing.assert_array_equal(run(), whole)


def test_scores_are_calibrated_for_a_convex_model():
    """Without projection, for logistic regression, TRAK is one Newton step of deletion."""
    rng = np.random.default_rng(0)
    n, d, ridge = 200, 4, 1e-3
    x = rng.normal(size=(n, d))
    y = (rng.random(n) < 1 / (1 + np.exp(-x @ np.array([1, -1, 0.5, 0])))).astype(int)

    def fitted(rows):
        w = np.zeros(d)
        signs = 2 * y[rows] - 1
        for _ in range(30):
            q = 1 / (1 + np.exp(signs * (x[rows] @ w)))
            hessian = (x[rows] * (q * (1 - q))[:, None]).T @ x[rows] + ridge * np.eye(d)
            w = w + np.linalg.solve(hessian, x[rows].T @ (signs * q) - ridge * w)
        return w

    w = fitted(np.arange(n))
    signs = 2 * y - 1
    q = 1 / (1 + np.exp(signs * (x @ w)))
    root = np.sqrt(q * (1 - q))[:, None]  # the paper's weights R = p (1 - p), put into Phi
    phi, targets = signs[:, None] * x * root, signs[:, None] * x
    found = trak.scores(phi, targets, weights=(q / root[:, 0]), l2=ridge)
    for i in range(3):
        without = fitted(np.delete(np.arange(n), i))
        wanted = signs * (x @ (w - without))
        np.testing.assert_allclose(found[i], wanted, atol=0.1 * np.abs(wanted).max())


def test_several_checkpoints_are_averaged():
    model, params, stats, x, y = network()
    other = model.init(jax.random.key(2))
    run = functools.partial(
        trak.attribute, model, train=(x, y), targets=(x[:4], y[:4]), key=KEY, l2=0.1, dim=16
    )
    both = run([(params, stats), other])
    assert both.shape == (20, 4, 1)
    logits = [model.apply(*checkpoint, x)[0] for checkpoint in ((params, stats), other)]
    weights = [jax.nn.sigmoid(-losses.margins(own, y)) for own in logits]
    first = run([(params, stats)]) / np.asarray(weights[0])[:, None, None]
    again = run([(params, stats)] * 2)  # another projection for the second
    second = 2 * again / np.asarray(weights[0])[:, None, None] - first
    assert not np.allclose(first, second)
    assert run([(params, stats)], output=trak.all_logits).shape == (20, 4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, s, x, y: trak.features(m, p, s, x, y[:3], KEY), r"y \[3\]"),
        (lambda m, p, s, x, y: trak.features(m, p, s, x, y, KEY, dim=0), "dim is 0"),
        (
            lambda m, p, s, x, y: trak.features(m, p, s, np.where(x == x[2], np.nan, x), y, KEY),
            "example 2 is not finite",
        ),
        (lambda m, p, s, x, y: trak.attribute(m, [], (x, y), (x, y), KEY, l2=1.0), "checkpoints"),
        (
            lambda m, p, s, x, y: trak.scores(x, x[:, :3], weights=np.ones(20), l2=1.0),
            r"target_features \[20, 3\]",
        ),
        (lambda m, p, s, x, y: trak.scores(x, x, weights=np.ones(3), l2=1.0), r"shape \[3\]"),
        (lambda m, p, s, x, y: trak.scores(x, x, weights=np.ones(20), l2=-1.0), "l2 is -1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*network())


@pytest.mark.parametrize("dim", [8, 30])  # primal and dual
def test_the_effect_is_the_sum_of_the_forget_sets_scores(dim):
    model, params, stats, x, y = network()
    other = model.init(jax.random.key(2))
    settings = {"l2": 0.1, "dim": dim, "output": trak.all_logits, "chunk": 7}
    arguments = (model, [(params, stats), other], (x, y), (x[:9], y[:9]))
    forget = np.array([3, 11, 4])
    found = trak.effect(*arguments, forget, KEY, **settings)
    scores = trak.attribute(*arguments, KEY, **settings)
    assert found.shape == (9, 3)
    np.testing.assert_allclose(found, scores[forget].sum(0), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="index 20"):
        trak.effect(*arguments, np.array([20]), KEY, **settings)


def test_a_projection_drawn_block_by_block_is_the_one_that_is_kept(monkeypatch):
    model, params, stats, x, y = network()
    monkeypatch.setattr(trak, "_ROWS", 16)
    kept = trak.features(model, params, stats, x, y, KEY, dim=12, chunk=5)
    monkeypatch.setattr(trak, "_KEPT", 0)
    drawn = trak.features(model, params, stats, x, y, KEY, dim=12, chunk=5)
    np.testing.assert_array_equal(kept, drawn)


@pytest.mark.parametrize("hessian", [True, False])
def test_with_the_hessian_an_effect_is_that_of_leaving_out(hessian):
    """Logistic regression to its optimum: what a point adds to a logit is known."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = (x[:, 0] + 0.8 * rng.normal(size=60) > 0).astype(np.int32)
    model = nn.mlp(3, (), 2)

    def optimum(rows):
        params, stats = model.init(KEY)

        def loss(params):
            logits, _ = model.apply(params, stats, x[rows])
            squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
            return losses.cross_entropy(logits, y[rows]).sum() + 5e-3 * squares

        step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.02 * g, p, jax.grad(loss)(p)))
        for _ in range(3000):
            params = step(params)
        return params, stats

    everyone = np.arange(60)
    full, forget = optimum(everyone), np.array([2, 30, 41])
    predicted = trak.effect(
        model, [full], (x, y), (x, y), forget, KEY, l2=1e-6, dim=64, output=trak.margin,
        projection="normal", hessian=hessian,
    )[:, 0]  # fmt: skip
    margins = [
        losses.margins(model.apply(*m, x)[0], y)
        for m in (full, optimum(np.setdiff1d(everyone, forget)))
    ]
    true = np.asarray(margins[0] - margins[1])
    slope = true @ predicted / (predicted @ predicted)
    assert (np.corrcoef(true, predicted)[0, 1] > 0.95) == hessian
    assert (0.8 < slope < 1.3) == hessian
