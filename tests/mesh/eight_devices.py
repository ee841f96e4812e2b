"""Run by test_mesh.py in its own process: number of host devices, folder, "all" for all parts."""

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
from jaxunlearn.attribution import datamodels, masks, members  # noqa: E402
from jaxunlearn.core import checkpoint, optimizers, step, tree  # noqa: E402
from jaxunlearn.core.checkpoint import BlockStore  # noqa: E402
from jaxunlearn.unlearn import (  # noqa: E402
    Problem,
    scratch,
)
from tests.mesh.lanes import data, lanes  # noqa: E402

folder = Path(sys.argv[2])


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


def attribution():
    """Outputs of networks on random subsets, and a lasso on them with its targets sharded."""
    devices = mesh.make()
    subsets = masks.exact(jax.random.key(0), 20, 100)
    keys, shape = jax.random.split(jax.random.key(1), 20), (30, 10)
    place = folder / f"members{jax.device_count()}"
    store = members.Outputs(place, subsets, keys, shape, width=2)
    members.run(member, {"x": data.x_train[:100], "y": data.y_train[:100]}, store, mesh=devices)
    outputs = np.array(store.outputs).reshape(20, -1)
    fitted = datamodels.fit(subsets, outputs, method="lasso", l1=0.3, mesh=devices)
    return tree.digest(outputs), fitted.weights[:, :20].tolist()


def member(shared, rows, key):
    """A few steps on a subset; logits of some points."""
    model = nn.mlp(64, (8,), 10)
    problem = Problem(shared["x"], shared["y"], jnp.arange(99), jnp.array([99]), 10)
    settings = vars(scratch.Training(epochs=2, batch_size=10))
    result = scratch.train(model, problem, rows, key, **settings)
    return model.apply(result.params, result.stats, shared["x"][:30])[0]


mlp, cnn = nn.mlp(64, (32,), 10), nn.cnn((8, 8, 1), (4, 8), batch_norm=True)
wide = nn.cnn((8, 8, 1), (32, 64), batch_norm=True)  # XLA's convolution, and Winograd's
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
if "all" in sys.argv:
    outputs, weights = attribution()
    wide_bits = tree.digest(lanes(wide, 1, "map", 1, 2))
    result |= {"members": outputs, "lasso": weights, "wide": wide_bits}
print(json.dumps(result))
