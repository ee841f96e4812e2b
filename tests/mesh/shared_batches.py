"""Run by test_mesh.py in its own process: lanes whose batches are shared by devices."""

import functools
import json
import re
import sys

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
    logits = jax.jit(
        jax.vmap(lambda r: model.apply(r["params"], r.get("stats", {}), data.x_val)[0])
    )
    kinds = {"shared": {"models": 4, "data": 2}, "eight": {"models": 8}, "one": {"models": 1}}
    result = {}
    for name, n_steps in (("step", 1), ("run", 22)):
        fn = functools.partial(train, model, n_steps)
        of = {
            kind: ensemble.run(fn, shared, members, width=WIDTH, mode=mode, mesh=mesh.make(axes))
            for kind, axes in kinds.items()
        }
        result[f"{name} gap"] = gap(of["shared"], of["one"])
        apart = np.abs(logits(of["shared"]) - logits(of["one"]))
        result[f"{name} logits"] = apart.max((1, 2)).tolist()  # by member
        result[f"{name} eight"] = gap(of["eight"], of["one"])
    for kind in ("shared", "eight"):
        text = compiled_text(fn, mode, mesh.make(kinds[kind]))
        result[f"{kind} reduces"] = "all-reduce(" in text
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        sizes = {int(size) for shape in shapes for size in shape.split(",")}
        result[f"{kind} rows"] = sorted(sizes & {BATCH, BATCH // 2, BATCH * WIDTH})
    return result


models = {
    "mlp": nn.mlp(64, (24,), 10),
    "cnn_bn": nn.cnn((8, 8, 1), (4, 8), batch_norm=True),
}
name, mode = sys.argv[1:]
print(json.dumps(compare(models[name], mode)))
