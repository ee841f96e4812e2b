"""Run by test_mesh.py as one of two processes: port, process number, folder."""

import json
import sys
from pathlib import Path

from jaxunlearn.core import mesh

port, number, folder = sys.argv[1:]
mesh.start(2, coordinator_address=f"localhost:{port}", num_processes=2, process_id=int(number))

import jax  # noqa: E402

from jaxunlearn import nn  # noqa: E402
from jaxunlearn.core import tree  # noqa: E402
from jaxunlearn.core.checkpoint import BlockStore  # noqa: E402
from tests.mesh.lanes import lanes  # noqa: E402

store = BlockStore(Path(folder) / "store")
results = lanes(nn.mlp(64, (32,), 10), 2, "vmap", 3, 20, store)
cnn = lanes(nn.cnn((8, 8, 1), (4, 8), batch_norm=True), 1, "map", 1, 5)
digests = {"mlp": tree.digest(results), "cnn": tree.digest(cnn)}
print(json.dumps({"devices": jax.device_count()} | digests))
