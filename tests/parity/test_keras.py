"""Keras 3 beside ours: the lightweight CNN, Nadam, decoupled decay, augmentation."""

import dataclasses
import functools
import os
import types

os.environ.setdefault("KERAS_BACKEND", "jax")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import strategies  # noqa: E402

from jaxunlearn.core import EarlyStop, loop, losses, optimizers, step, tree  # noqa: E402
from jaxunlearn.data import augment  # noqa: E402
from jaxunlearn.nn.images import dual_cnn  # noqa: E402

keras = pytest.importorskip("keras")
layers = keras.layers


def branch(x, name, shape):
    """Rows 1 to 4 of the author's network."""
    for i, filters in ((1, 10), (2, 20)):
        x = layers.Conv2D(filters, 3, activation="relu", name=f"{name}_conv_{i}")(x)
        x = layers.MaxPool2D()(x)
    return x


def dual_of(shape):
    inputs = [layers.Input(shape) for _ in range(2)]
    logits = []
    for i, x in enumerate(inputs, 1):
        x = layers.Flatten()(branch(x, f"branch_{i}", shape))
        logits.append(layers.Dense(10, name=f"branch_{i}_head")(x))
    return keras.Model(inputs, logits)


def fused_of(shape):
    x = layers.Input(shape)
    heads = []
    for i in (1, 2):
        own = branch(x, f"branch_{i}", shape)
        size = own.shape[1:3]
        heads.append(layers.Conv2D(10, size, activation="relu", name=f"branch_{i}_head")(own))
    y = layers.Flatten()(layers.Concatenate()(heads))
    y = layers.Dropout(0.5)(layers.Dense(32, activation="relu", name="hidden")(y))
    return keras.Model(x, layers.Dense(10, name="out")(y))


def given(network, params):
    """The network with our parameters."""
    for name, leaf in tree.named(params).items():
        layer, kind = name.rsplit("/", 1)
        getattr(network.get_layer(layer.replace("/", "_")), kind).assign(leaf)
    return network


def drawn(model, key):
    """Parameters whose biases are not 0."""
    params, _ = model.init(key)
    return jax.tree.map(lambda w: w + 0.1 * jax.random.normal(key, w.shape), params)


@pytest.mark.parametrize("shape", [(28, 28, 1), pytest.param((32, 32, 3), marks=pytest.mark.slow)])
def test_logits(shape):
    pair = dual_cnn.build(shape)
    dual, fused = drawn(pair.dual, jax.random.key(0)), drawn(pair.fused, jax.random.key(1))
    x = jax.random.uniform(jax.random.key(2), (2, 9, *shape))
    theirs = given(dual_of(shape), dual)([x[0], x[1]])
    ours, _ = pair.dual.apply(dual, {}, x[0], x[1])
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
    network = given(fused_of(shape), dual_cnn.fuse(dual, fused))
    assert network.count_params() == tree.size(fused)
    ours, _ = pair.fused.apply(dual_cnn.fuse(dual, fused), {}, x[0])
    np.testing.assert_allclose(ours, network(x[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optimizers.keras_nadam(1e-3), lambda: keras.optimizers.Nadam(1e-3)),
        (
            optimizers.keras_nadam(optax.cosine_decay_schedule(1e-3, 60)),
            lambda: keras.optimizers.Nadam(keras.optimizers.schedules.CosineDecay(1e-3, 60)),
        ),
        (
            optimizers.keras_sgd(1e-3, 0.9, 1e-4),
            lambda: keras.optimizers.SGD(1e-3, 0.9, nesterov=True, weight_decay=1e-4),
        ),
        (
            optimizers.keras_sgd(1e-2, 0.5, 0.1, nesterov=False),
            lambda: keras.optimizers.SGD(1e-2, 0.5, weight_decay=0.1),
        ),
    ],
    ids=["nadam", "nadam-schedule", "sgd", "sgd-plain"],
)
def test_sixty_steps_of_an_optimizer(ours, theirs):
    """On the gradients of the network, the same for both: those at our parameters."""
    shape = (12, 12, 1)
    model = dual_cnn.build(shape).fused
    params, _ = model.init(jax.random.key(0))
    variables = {name: keras.Variable(leaf) for name, leaf in tree.named(params).items()}
    optimizer, state = theirs(), ours.init(params)
    optimizer.build(list(variables.values()))

    @jax.jit
    def step(params, state, key):
        x = jax.random.uniform(key, (16, *shape))
        y = jax.random.randint(key, (16,), 0, 10)
        loss = lambda p: losses.cross_entropy(model.apply(p, {}, x)[0], y).mean()  # noqa: E731
        grads = jax.grad(loss)(params)
        updates, state = ours.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    for t in range(60):
        params, state, grads = step(params, state, jax.random.key(t))
        optimizer.apply(list(tree.named(grads).values()), list(variables.values()))
    for name, leaf in tree.named(params).items():
        np.testing.assert_allclose(leaf, np.asarray(variables[name].value), rtol=1e-5, atol=2e-6)


@hypothesis.given(
    strategies.lists(
        strategies.sampled_from([np.nan, np.inf, -np.inf, 0.0, 0.25, 0.5, 1.0]),
        min_size=8,
        max_size=8,
    ),
    strategies.integers(1, 3),
    strategies.sampled_from([0.0, 0.25]),
    strategies.integers(0, 2),
    strategies.sampled_from(["min", "max"]),
)
def test_early_stopping(values, patience, min_delta, start, mode):
    """Of any series, with NaN and infinities: the same last check, the same weights at the end."""
    theirs = keras.callbacks.EarlyStopping(
        "v", min_delta, patience, mode=mode, restore_best_weights=True, start_from_epoch=start
    )
    model = types.SimpleNamespace(weights=None, stop_training=False)
    model.get_weights = lambda: model.weights
    model.set_weights = lambda weights: setattr(model, "weights", weights)
    theirs.set_model(model)
    theirs.on_train_begin()
    for number, value in enumerate(values):
        model.weights = number
        theirs.on_epoch_end(number, {"v": value})
        if model.stop_training:
            break
    theirs.on_train_end()
    stop = EarlyStop("v", patience, min_delta, start, mode=mode)
    state = step.init_state({"number": jnp.int32(-1)}, optax.identity())
    final, n_checks = _stopped((stop,), state, np.float32(values))
    assert int(n_checks) == number + 1
    assert int(final) == model.weights


@functools.partial(jax.jit, static_argnums=0)
def _stopped(stops, state, values):
    """Weights after a run with a check after each step, and the number of checks."""

    def count(state, shared, batch, key):
        params = {"number": state.params["number"] + 1}
        return dataclasses.replace(state, params=params, step=state.step + 1), {}

    evaluate = lambda state, shared: {"v": shared[state.step - 1]}  # noqa: E731
    result = loop.run(
        count,
        state,
        values,
        lambda key, t: t,
        jax.random.key(0),
        8,
        evaluate=evaluate,
        every=1,
        stops=stops,
    )
    return result.state.params["number"], result.state.step


@pytest.mark.parametrize("shape", [(5, 28, 28, 1), (4, 17, 32, 3)])
def test_augmentation_with_given_matrices(shape):
    images = np.random.default_rng(0).random(shape, np.float32)
    size = shape[1:3]
    turn, zoom = layers.RandomRotation(0.1), layers.RandomZoom(0.2, 0.2)
    move = layers.RandomTranslation(0.2, 0.2)
    drawn = turn.get_random_transformation(images)
    theirs = all_theirs = turn.transform_images(images, drawn)
    ours = all_ours = augment.affine(images, augment.rotations(jnp.deg2rad(drawn["angle"]), size))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # the angle takes another way to radians
    drawn = zoom.get_random_transformation(images)
    factors = jnp.concatenate([drawn["height_zoom"], drawn["width_zoom"]], axis=1)
    ours = augment.affine(images, augment.zooms(factors, size))
    np.testing.assert_allclose(ours, zoom.transform_images(images, drawn), atol=1e-6)
    all_theirs = zoom.transform_images(all_theirs, drawn)
    all_ours = augment.affine(all_ours, augment.zooms(factors, size))
    drawn = move.get_random_transformation(images)
    ours = augment.affine(images, augment.translations(drawn["translations"][:, ::-1]))
    np.testing.assert_allclose(ours, move.transform_images(images, drawn), atol=1e-6)
    all_theirs = move.transform_images(all_theirs, drawn)
    all_ours = augment.affine(all_ours, augment.translations(drawn["translations"][:, ::-1]))
    np.testing.assert_allclose(all_ours, all_theirs, atol=3e-5)


def test_initialisers_have_the_spread_of_keras():
    model = dual_cnn.build((28, 28, 1))
    params = jax.vmap(model.fused.init)(jax.random.split(jax.random.key(0), 50))[0]
    network = fused_of((28, 28, 1))
    for name, glorot in (("branch_1/head", True), ("hidden", False), ("out", True)):
        layer = network.get_layer(name.replace("/", "_"))
        shape = tuple(layer.kernel.shape)
        kind = keras.initializers.GlorotUniform if glorot else keras.initializers.HeNormal
        theirs = np.std([kind(seed=i)(shape) for i in range(50)])
        ours = np.std(tree.named(params)[f"{name}/kernel"])
        np.testing.assert_allclose(ours, theirs, rtol=0.02)
