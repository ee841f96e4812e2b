import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.core import ema, keys, optimizers, step, tree


def quadratic(params, stats, shared, batch, key):
    del shared
    noise = jax.random.normal(key)
    loss = jnp.sum((params["w"] - batch) ** 2)
    return loss, ({"seen": stats["seen"] + 1}, {"noise": noise})


def start(optimizer, w=1.0):
    return step.init_state({"w": jnp.full(3, w)}, optimizer, {"seen": jnp.zeros((), jnp.int32)})


def test_weighted_sum_composes_losses_statistics_metrics_and_keys():
    both = step.weighted_sum({"a": (2.0, quadratic), "b": (-0.5, quadratic)})
    params, stats = {"w": jnp.arange(3.0)}, {"seen": jnp.zeros((), jnp.int32)}
    batch, key = {"a": 1.0, "b": 3.0}, jax.random.key(0)
    loss, (stats, metrics) = both(params, stats, None, batch, key)
    parts = {name: jnp.sum((params["w"] - batch[name]) ** 2) for name in batch}
    np.testing.assert_allclose(loss, 2 * parts["a"] - 0.5 * parts["b"])
    assert int(stats["seen"]) == 2
    assert set(metrics) == {"a/loss", "a/noise", "b/loss", "b/noise"}
    for name in "ab":
        np.testing.assert_allclose(metrics[f"{name}/loss"], parts[name])
        np.testing.assert_array_equal(
            metrics[f"{name}/noise"], jax.random.normal(keys.fold(key, name))
        )
    with pytest.raises(ValueError, match="terms is empty"):
        step.weighted_sum({})


def test_weighted_sum_of_one_term_is_that_term():
    optimizer = optimizers.sgd(0.1)
    plain = step.gradient_step(quadratic, optimizer)
    summed = step.gradient_step(step.weighted_sum({"a": (1.0, quadratic)}), optimizer)
    one, _ = plain(start(optimizer), None, 2.0, jax.random.key(0))
    other, _ = summed(start(optimizer), None, {"a": 2.0}, jax.random.key(0))
    chex.assert_trees_all_equal(one, other)


def regression(params, stats, shared, batch, key):
    gap = batch["x"] @ params["w"] - batch["y"] * shared
    loss = jnp.mean(gap**2 + jax.random.bernoulli(key, 1.0))
    return loss, ({"seen": stats["seen"] + 1}, {"largest": jnp.mean(jnp.abs(gap))})


@pytest.mark.parametrize("size, parts", [(4, 3), (5, 3), (7, 2), (12, 1), (50, 1), (1, 12)])
def test_a_batch_in_chunks_has_the_same_gradient(size, parts):
    x = jax.random.normal(jax.random.key(0), (12, 3))
    batch, stats = {"x": x, "y": x[:, 0] ** 2}, {"seen": jnp.zeros((), jnp.int32)}
    params, key = {"w": jnp.arange(3.0), "frozen": None}, jax.random.key(1)

    def found(objective):
        grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, (stats_now, metrics)), grads = grad(params, stats, 0.5, batch, key)
        return stats_now, (loss, metrics, grads)

    _, whole = found(regression)
    seen, chunks = found(step.accumulated(regression, size))
    chex.assert_trees_all_close(chunks, whole, rtol=1e-5)
    assert int(seen["seen"]) == parts


def test_chunks_draw_apart():
    def noisy(params, stats, shared, batch, key):
        noise = jax.random.normal(key, batch.shape)
        return jnp.mean(params["w"] * noise), (stats, {"first": noise[0]})

    (_, (_, metrics)) = step.accumulated(noisy, 2)(
        {"w": 1.0}, {}, None, jnp.zeros(4), jax.random.key(3)
    )
    own = [jax.random.normal(keys.fold(jax.random.key(3), i), (2,))[0] for i in range(2)]
    np.testing.assert_allclose(metrics["first"], np.mean(own), rtol=1e-6)


def test_metrics_are_taken_before_the_update():
    optimizer = optimizers.sgd(0.1)
    state, metrics = step.gradient_step(quadratic, optimizer)(
        start(optimizer), None, 0.0, jax.random.key(0)
    )
    np.testing.assert_allclose(metrics["loss"], 3.0)
    assert int(state.step) == 1 and state.step.dtype == jnp.int32


def test_alternate_takes_one_step_and_shares_the_optimizer():
    optimizer = optimizers.sgd(0.1, momentum=0.9)
    take = step.gradient_step(quadratic, optimizer)
    both = step.alternate(take, take, lambda t: t % 2 == 0)
    state = start(optimizer)
    expected = start(optimizer)
    for t in range(4):
        key = jax.random.key(t)
        state, metrics = both(state, None, {"first": 0.0, "second": 5.0}, key)
        target = 0.0 if t % 2 == 0 else 5.0
        name = "first" if t % 2 == 0 else "second"
        expected, own = take(expected, None, target, keys.fold(key, name))
        np.testing.assert_allclose(metrics["loss"], own["loss"], rtol=1e-6)
    chex.assert_trees_all_close(state, expected, rtol=1e-6)


def test_alternate_computes_only_the_step_it_takes_under_vmap():
    optimizer = optimizers.sgd(0.1)
    take = step.gradient_step(quadratic, optimizer)
    both = step.alternate(take, take, lambda t: t % 2 == 0)

    def one(w):
        state = step.init_state({"w": w}, optimizer, {"seen": jnp.zeros((), jnp.int32)})
        return both(state, None, {"first": 0.0, "second": 5.0}, jax.random.key(0))[0].params

    text = str(jax.make_jaxpr(jax.vmap(one))(jnp.ones((4, 3))))
    assert "cond[" in text


@pytest.mark.parametrize("decay", [0.9, lambda t: jnp.minimum(1 - 1 / (t + 1), 0.99)])
def test_ema_follows_the_parameters(decay):
    optimizer = optimizers.sgd(0.1)
    plain = step.gradient_step(quadratic, optimizer)
    averaged = ema.with_ema(plain, decay)
    state, reference = ema.start(start(optimizer)), start(optimizer)
    average = np.ones(3)
    for t in range(1, 6):
        state, _ = averaged(state, None, 0.0, jax.random.key(t))
        reference, _ = plain(reference, None, 0.0, jax.random.key(t))
        d = decay(t) if callable(decay) else decay
        average = d * average + (1 - d) * np.asarray(reference.params["w"])
    chex.assert_trees_all_equal(state.params, reference.params)
    np.testing.assert_allclose(state.extra["ema"]["w"], average, rtol=1e-5)


def test_ema_leaves_frozen_leaves_alone_and_checks_its_decay():
    old = {"a": jnp.ones(2), "b": jnp.ones(2)}
    new = ema.average(old, {"a": jnp.zeros(2), "b": None}, 0.75)
    np.testing.assert_array_equal(new["a"], [0.75, 0.75])
    assert new["b"] is old["b"]
    with pytest.raises(ValueError, match="decay is 1.5"):
        ema.with_ema(lambda *args: args, 1.5)


def test_frozen_leaves_have_neither_gradient_nor_optimizer_state(small):
    model, params, stats, batch_of = small
    trainable, frozen = tree.partition(params, tree.select(params, "dense/001/.*"))
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    take = step.gradient_step(step.with_frozen(step.supervised(model)), optimizer)
    state = step.init_state(trainable, optimizer, stats)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * tree.size(trainable)
    shared = {"frozen": frozen, "shared": None}
    after, _ = jax.jit(take)(state, shared, batch_of(jax.random.key(0), 0), jax.random.key(1))
    assert set(tree.named(after.params)) == {"dense/001/bias", "dense/001/kernel"}
    assert tree.digest(after.params) != tree.digest(trainable)


def test_triangular_peaks_where_it_says():
    schedule = optimizers.triangular(0.4, 100, peak_at=0.2)
    values = np.array([schedule(t) for t in range(101)])
    assert values.argmax() == 20 and np.isclose(values.max(), 0.4)
    assert (values[:100] > 0).all() and values[100] == 0
    np.testing.assert_allclose(np.diff(values[:21]), 0.4 / 21, rtol=1e-4)
    np.testing.assert_allclose(np.diff(values[20:]), -0.4 / 80, rtol=1e-4)
