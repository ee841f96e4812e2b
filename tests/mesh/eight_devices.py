"""Run by test_mesh.py in its own process, with the number of host devices as argument."""

import json
import sys
from pathlib import Path

from jaxunlearn.core import mesh

mesh.start(int(sys.argv[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from jaxunlearn import nn  # noqa: E402
from jaxunlearn.core import checkpoint, ensemble, keys, loop, optimizers, step, tree  # noqa: E402
from jaxunlearn.core.checkpoint import BlockStore  # noqa: E402
from jaxunlearn.data import batches, load  # noqa: E402

folder = Path(sys.argv[2])
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


def sharded_step():
    """A step with the batch and a kernel sharded over the mesh, and its checkpoint."""
    n = jax.device_count()
    devices = mesh.make({"data": max(1, n // 2), "model": min(2, n)})
    model = nn.mlp(64, (32,), 10)
    params, stats = model.init(jax.random.key(0))
    rules = {"dense/000/kernel": P(None, "model"), ".*": P()}
    params = jax.device_put(params, mesh.shardings(params, devices, rules))
    batch = jax.device_put(
        {"x": data.x_train[:64], "y": data.y_train[:64]}, jax.NamedSharding(devices, P("data"))
    )
    optimizer = optimizers.sgd(0.1, 0.9)
    take = jax.jit(step.gradient_step(step.supervised(model), optimizer))
    state = step.init_state(params, optimizer, stats)
    for t in range(3):
        state, _ = take(state, None, batch, jax.random.key(t))
    path = folder / "sharded"
    if not path.exists():  # the first process, on 8 devices, saves; the others restore
        checkpoint.save(path, state)
    restored = checkpoint.restore(path, state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, restored.params)
    return max(jax.tree.leaves(gap))


mlp, cnn = nn.mlp(64, (32,), 10), nn.cnn((8, 8, 1), (4, 8), batch_norm=True)
store = BlockStore(folder / "store")
if len(list(folder.glob("store/*"))) == 0:
    try:
        lanes(mlp, 2, "vmap", 3, 20, store, die_at=3)
    except KeyboardInterrupt:
        pass
result = {
    "devices": jax.device_count(),
    "mlp": tree.digest(lanes(mlp, 2, "vmap", 3, 20)),
    "resumed": tree.digest(lanes(mlp, 2, "vmap", 3, 20, store)),
    "cnn": tree.digest(lanes(cnn, 1, "map", 1, 5)),
    "sharded": sharded_step(),
    "finite": bool(np.isfinite(lanes(cnn, 1, "map", 1, 2)["params"]["head"]["kernel"]).all()),
}
print(json.dumps(result))
