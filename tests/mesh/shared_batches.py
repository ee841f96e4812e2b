"""Run by test_mesh.py in its own process: lanes whose batches are shared by devices."""

import functools
import json
import re

from jaxunlearn.core import mesh

mesh.start(8)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from jaxunlearn import nn  # noqa: E402
from jaxunlearn.core import ensemble, keys, loop, optimizers, step  # noqa: E402
from jaxunlearn.data import batches, load  # noqa: E402

BATCH, WIDTH = 52, 2  # the sizes of nothing else
data = load("digits", 600)
shared = {"x": data.x_train, "y": data.y_train}
members = jax.vmap(lambda i: keys.fold(jax.random.key(0), i))(jnp.arange(9))


def train(model, n_steps, shared, key):
    optimizer = optimizers.sgd(0.05, 0.9, 5e-4)
    params, stats = model.init(keys.fold(key, "init"))
    state = step.init_state(params, optimizer, stats)
    take = step.gradient_step(step.supervised(model), optimizer)
    source = batches(shared, jnp.arange(600), BATCH)
    state, _ = loop.scan(take, state, None, source, key, n_steps)
    return {"params": state.params, "stats": state.stats}


def gap(one, other):
    return max(
        float(np.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def compiled_text(fn, mode, devices):
    """The program of one device, to see what it computes."""
    by_lane = jax.NamedSharding(devices, P("models"))
    n_lanes = devices.shape["models"]
    index = np.zeros((n_lanes, WIDTH), int)
    inputs = jax.device_put(ensemble._pack_keys(members[index]), by_lane)
    own = jax.device_put(shared, jax.NamedSharding(devices, P()))
    return ensemble.lanes(fn, devices, mode).compiled(own, inputs).as_text()


def compare(model, mode):
    meshes = {
        "shared": mesh.make({"models": 4, "data": 2}),
        "eight": mesh.make(),
        "one": mesh.make({"models": 1}),
        "pair": mesh.make({"models": 1, "data": 2}),
    }
    result = {}
    for name, n_steps in (("step", 1), ("run", 22)):
        fn = functools.partial(train, model, n_steps)
        of = {
            kind: ensemble.run(fn, shared, members, width=WIDTH, mode=mode, mesh=devices)
            for kind, devices in meshes.items()
        }
        result[name] = gap(of["shared"], of["one"])
        result[f"{name} logits"] = gap(of["shared"]["logits"], of["one"]["logits"])
        result[f"{name} eight"] = gap(of["eight"], of["one"])
        result[f"{name} pair"] = gap(of["shared"], of["pair"])
    for kind in ("shared", "eight"):
        text = compiled_text(fn, mode, meshes[kind])
        result[f"{kind} reduces"] = "all-reduce(" in text
        rows = re.findall(r"f32\[([\d,]+)\]", text)
        result[f"{kind} rows"] = [
            n for n in (BATCH // 2, BATCH) if any(str(n) in row.split(",") for row in rows)
        ]
    return result


mlp, cnn = nn.mlp(64, (24,), 10), nn.cnn((8, 8, 1), (4, 8), batch_norm=True)
results = {
    f"{name} {mode}": compare(model, mode)
    for name, model in (("mlp", mlp), ("cnn_bn", cnn))
    for mode in ("vmap", "map")
}
print(json.dumps(results))
