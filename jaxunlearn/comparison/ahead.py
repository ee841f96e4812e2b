"""The programs of phases to come, compiled in a thread while the first phases run."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn.comparison.models import Job, Phase, forgetting, training
from jaxunlearn.core import tree
from jaxunlearn.unlearn import baselines


@contextlib.contextmanager
def compiling(job: Job) -> Iterator[None]:
    """Compiles, until the block ends, what a comparison will need: for oracles, for each method.

    Nothing is compiled twice: who needs a program that is under way waits for it, and one that is
    not begun is compiled by who needs it. Methods that need estimates are left to their phases.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_compile, args=(job, ended), name="compiling ahead")
    if jax.process_count() == 1:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()


def _compile(job: Job, ended: threading.Event) -> None:
    with contextlib.suppress(Exception):  # its phase meets the same failure, and reports it
        for name, phase in _phases(job):
            if ended.is_set():
                return
            if 0 not in job.folder.lanes(name):
                phase.compile()


def _phases(job: Job) -> Iterator[tuple[str, Phase]]:
    """The folder of each phase's lanes, and the phase, in their order."""
    n_models = job.settings.n_models
    oracle = training(job, "oracle", job.problem.retain, n_models)
    yield "oracle", oracle
    full = _like_full(oracle, n_models)
    for name, (method, config) in job.methods.items():
        if method is not baselines.retrain and getattr(config, "needs", None) is None:
            yield f"methods/{name}", forgetting(job, name, full)


def _like_full(phase: Phase, n_models: int) -> dict[str, Any]:
    """Zeros in the form of a training phase's results, that take no memory."""
    one = jax.eval_shape(phase.one, phase.shared, tree.take(phase.members, 0))
    zeros = lambda x: np.broadcast_to(np.zeros((), x.dtype), (n_models, *x.shape))  # noqa: E731
    return tree.nested({name: zeros(leaf) for name, leaf in tree.named(one).items()})
