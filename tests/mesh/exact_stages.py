"""Run by test_mesh.py in its own process, with the number of host devices as argument."""

import json
import sys

from jaxunlearn.core import mesh

mesh.start(int(sys.argv[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxunlearn.core import tree  # noqa: E402
from jaxunlearn.exact import (  # noqa: E402
    orders,
    plan,
    prefixes,  # noqa: E402
    sliceable,  # noqa: E402
)
from jaxunlearn.nn.images import vit  # noqa: E402
from jaxunlearn.nn.language import decoder  # noqa: E402

RECIPE = plan.StageRecipe(
    rank=2, alpha=16.0, learning_rate=4e-3, epochs=1, batch_size=8, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(2, 2), 20, recipe=RECIPE, layers_per_slice=2, lane_width=1)
VIT = vit.Config((8, 8, 1), 2, 16, 4, 2, 16, 10)
DECODER = decoder.Config("llama", 32, 16, 32, 4, 2, 1, 8, 12)
rng = np.random.default_rng(0)
tokens = rng.integers(0, 32, (80, 12)).astype(np.int32)
EXAMPLES = {
    "vit": {
        "x": rng.normal(size=(80, 8, 8, 1)).astype(np.float32),
        "y": rng.integers(0, 10, 80).astype(np.int32),
    },
    "decoder": {
        "x": tokens,
        "where": np.tile(np.arange(5, 11, dtype=np.int32), (80, 1)),
        "labels": tokens[:, 6:12],
    },
}


def stages(name, network, model):
    base = jax.device_get(model.init(jax.random.key(0))[0])
    slices = prefixes.arrange(PLAN, EXAMPLES[name], np.arange(80) // 20)
    trained = prefixes.train(network, base, PLAN, slices, mesh=mesh.make())
    return {str(prefix): tree.digest(stage) for prefix, stage in trained.items()}


print(
    json.dumps(
        {
            "devices": jax.device_count(),
            "vit": stages("vit", sliceable.of_vit(VIT), vit.build(VIT)),
            "decoder": stages("decoder", sliceable.of_decoder(DECODER), decoder.decoder(DECODER)),
        }
    )
)
