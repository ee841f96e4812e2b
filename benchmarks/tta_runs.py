"""Three runs of RMT at once beside the same three one after the other, both ours.

WRN-16-1, five batches of 200 images; see `benchmarks.tta`. On a CPU the runs of one program follow
on each other, on an accelerator they are mapped.
"""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.harness import Row, agree, measure
from benchmarks.tta import settings, stream
from jaxunlearn import tta
from jaxunlearn.core import mesh

N, RUNS = 1000, 3


def rows() -> Iterator[Row]:
    """The one row."""
    method = tta.METHODS["rmt"](**settings("rmt", "default"))
    with jax.set_mesh(mesh.make({"data": jax.device_count()})):
        together = stream(method, N, range(RUNS))
        alone = [stream(method, N, [key]) for key in range(RUNS)]
        at_once = together()[1]["entropy"]
        apart = np.concatenate([one()[1]["entropy"] for one in alone])
        gap = agree("entropies of three runs", at_once, apart, 1e-3)
        jax.clear_caches()
        note = f"{jax.device_count()} devices share a batch"
        ours = measure(together, repeats=3, note=note)
        peer = measure(lambda: [one() for one in alone], repeats=3, note=note)
    yield Row("3 runs of rmt at once, 5 batches", ours, peer, "one after the other", gap, 0.9)
