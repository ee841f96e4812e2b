"""Lanes of small models on digits, on all devices there are; used by the scripts beside it."""

import jax
import jax.numpy as jnp

from jaxunlearn.core import ensemble, keys, loop, mesh, optimizers, step
from jaxunlearn.data import batches, load

data = load("digits", 600)


def train(model, epochs, shared, key):
    source = batches({"x": shared["x"], "y": shared["y"]}, jnp.arange(600), 50)
    n_steps = epochs * source.steps_per_epoch
    optimizer = optimizers.sgd(optimizers.triangular(0.1, n_steps), 0.9, 5e-4)
    params, stats = model.init(keys.fold(key, "init"))
    state = step.init_state(params, optimizer, stats)
    take = step.gradient_step(step.supervised(model), optimizer)
    state, _ = loop.scan(take, state, None, source, key, n_steps)
    return {"params": state.params, "stats": state.stats}


def lanes(model, epochs, mode, width, n_members, store=None, die_at=None):
    members = jax.vmap(lambda i: keys.fold(jax.random.key(0), i))(jnp.arange(n_members))
    shared = {"x": data.x_train, "y": data.y_train}

    def callback(done):
        if die_at is not None and done >= die_at:
            raise KeyboardInterrupt

    return ensemble.run(
        lambda shared, key: train(model, epochs, shared, key),
        shared, members, width=width, mode=mode, mesh=mesh.make(), store=store, callback=callback,
    )  # fmt: skip
