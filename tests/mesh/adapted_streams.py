"""Run by test_mesh.py in its own process: a stream whose batches are shared by eight devices."""

import json
import sys

from jaxunlearn.core import mesh

mesh.start(8)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxunlearn import nn, tta  # noqa: E402

model = nn.wide_resnet(10, 1)
params, stats = model.init(jax.random.key(0))
images = np.random.default_rng(0).uniform(size=(32, 8, 8, 3)).astype("float32")
source = images[:16], np.arange(16) % 10


def run(name, n_devices):
    settings = {"rmt": {"warm_up_samples": 16}}.get(name, {})
    with jax.set_mesh(mesh.make({"data": n_devices})):
        out = tta.run(
            tta.METHODS[name](**settings),
            model,
            params,
            stats,
            images,
            batch_size=16,
            key=jax.random.key(1),
            source=source,
        )
    return jax.device_get(out)


gaps = {}
for name in sys.argv[1].split(","):
    one, eight = run(name, 1), run(name, 8)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)
    gaps[name] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
print(json.dumps({"devices": jax.device_count(), "gaps": gaps}))
