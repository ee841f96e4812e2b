"""Steps over stages, for several models: each stops early on its own, and a run can go on.

`stages.of_members` trains models in step, with one program and no early stopping. Here each model
has its own data, key and early stopping; models that have stopped cost nothing more. All of them
advance by one block a call, in lanes (`core.ensemble`), and after it their states are written.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import ensemble, loop, stages, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.errors import NonFiniteError
from jaxunlearn.core.keys import Key
from jaxunlearn.core.sources import as_source
from jaxunlearn.core.stages import Stage
from jaxunlearn.core.step import TrainState

History: TypeAlias = dict[str, np.ndarray]


class Trained(NamedTuple):
    """What `run` returns, of N models.

    Attributes:
        state: with all parameters, leading axis N, the best weights restored.
        metrics: of the steps, averaged between checks: [N, checks], NaN after a model's end.
        checks: what `evaluate` returned, likewise.
        best_checks: for each `EarlyStop`, the check whose weights it restored (-1: none), [N].
    """

    state: TrainState
    metrics: History
    checks: History
    best_checks: tuple[np.ndarray, ...]


def run(
    stage: Stage,
    state: TrainState,
    keys: Key,
    *,
    data: Callable[[Any], Any],
    shared: Any,
    own: Any = None,
    width: int = 1,
    mode: ensemble.Mode = "vmap",
    mesh: Mesh | None = None,
    store: BlockStore | None = None,
    callback: Callable[[int, History], None] | None = None,
) -> Trained:
    """Takes N models through one stage.

    Args:
        stage: what each of them does; its `data` is not looked at. A block is `stage.block` steps,
            by default those between two checks.
        state: with all parameters, leading axis N.
        keys: a stage's key of each model, [N].
        data: `data(reads) -> source` of one model, where `reads` is
            `{"shared": shared, "own": its part of own}`; so are what the objective and the
            evaluation get as `shared`. The same function gives the same program.
        shared: what all models read.
        own: what each model reads alone, leading axis N.
        width: models per lane, see `ensemble.run`; so are `mode` and `mesh`.
        mode: how those of a lane are computed.
        mesh: by default one device.
        store: its block 0 holds how far the models are; a run goes on from there, to the same bits,
            if nothing else has changed.
        callback: `callback(checks done, checks)` after each block, with all checks so far as in
            `Trained`.

    Raises:
        ValueError: a stage without an evaluation, or what is in the store has other shapes (that it
            is the same run is for the caller to see to, as `core.run_folder` does).
        NonFiniteError: a model diverged; the blocks before are kept.
    """
    if stage.evaluate is None:
        raise ValueError(
            f"Stage {stage.name}: evaluate is None; the models of a cohort need checks"
        )
    block = stage.block or stage.every
    own = {} if own is None else own
    begun, frozen = jax.vmap(functools.partial(stages.begin, stage))(state)
    progress = jax.vmap(functools.partial(loop.start, stops=stage.stops))(begun)
    now = _Now(_to_host(progress), {}, {})
    if store is not None and 0 in store:
        now = _read(stage, store, now)
    advance = _advance(stages.programs(stage), data, stage.n_steps, stage.every, block, stage.stops)
    mesh = mesh or meshes.make({"models": 1})
    shared = ensemble.placed(shared, mesh)  # once, and not in every call
    members = {"frozen": frozen, "keys": keys, "own": own}
    while len(alive := np.flatnonzero(_unfinished(now.progress, stage.n_steps))):
        rows = jax.tree.map(lambda leaf: leaf[alive], members | {"progress": now.progress})
        found = ensemble.run(advance, shared, rows, width=width, mode=mode, mesh=mesh)
        _check_finite(stage.name, alive, found)
        now = _extended(now, alive, found)
        if store is not None:
            store.write(0, dataclasses.asdict(now) | {"progress": _flat(now.progress)})
        if callback is not None:
            callback(_n_checks(now), now.checks)
    state, best_checks = jax.vmap(loop.finish)(jax.tree.map(jnp.asarray, now.progress))
    params = jax.vmap(tree.combine)(state.params, frozen)
    best = tuple(np.asarray(check) for check in best_checks)
    return Trained(dataclasses.replace(state, params=params), now.metrics, now.checks, best)


@dataclasses.dataclass(frozen=True)
class _Now:
    """How far the models are, on the host: progress, and the history as in `Trained`."""

    progress: loop.Progress
    metrics: History
    checks: History


# The same functions and lengths give the same function, and `ensemble.lanes` its program.
@functools.lru_cache(maxsize=64)
def _advance(programs, data, n_steps, every, block, stops) -> Callable[[Any, Any], Any]:
    step, evaluate = programs

    def advance(shared: Any, member: Any) -> Any:
        """One block of one model."""
        reads = {"shared": shared, "own": member["own"]}
        progress, metrics, checks = loop.advance(
            member["progress"],
            {"frozen": member["frozen"], "shared": reads},
            as_source(data(reads)),
            member["keys"],
            n_steps,
            step=step,
            evaluate=evaluate,
            every=every,
            stops=stops,
            block=block,
        )
        between = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]).mean(1), metrics)
        return {"progress": _flat(progress), "metrics": between, "checks": checks}

    return advance


def _check_finite(name: str, alive: np.ndarray, found: dict[str, Any]) -> None:
    """Also since NaN marks, in a history, a model that has ended."""
    for what, values in (found["metrics"] | found["checks"]).items():
        bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if bad.any():
            raise NonFiniteError(
                f"stage {name}: {what} of model {alive[bad.argmax()]} is not finite; a smaller "
                "learning rate may help. What was there before is kept"
            )


def _unfinished(progress: Any, n_steps: int) -> np.ndarray:
    return (progress.done < n_steps) & ~progress.stopped


def _n_checks(now: _Now) -> int:
    return next(iter(now.checks.values())).shape[1] if now.checks else 0


def _extended(now: _Now, alive: np.ndarray, found: dict[str, Any]) -> _Now:
    """With what the living models have found; NaN for the others."""
    n = len(now.progress.done)

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        out = old.copy()
        out[alive] = new
        return out

    def longer(histories: History, news: History) -> History:
        return {
            name: np.concatenate(
                [
                    histories.get(name, np.empty((n, 0, *new.shape[2:]), new.dtype)),
                    put(np.full((n, *new.shape[1:]), np.nan, new.dtype), new),
                ],
                axis=1,
            )
            for name, new in news.items()
        }

    progress = jax.tree.map(put, now.progress, _like(now.progress, found["progress"]))
    return _Now(
        progress, longer(now.metrics, found["metrics"]), longer(now.checks, found["checks"])
    )


def _flat(progress: loop.Progress) -> dict[str, Any]:
    """Leaves by number: names would not survive in all their kinds (tuples, NamedTuples)."""
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(progress))}


def _like(progress: loop.Progress, flat: dict[str, Any]) -> loop.Progress:
    return jax.tree.unflatten(jax.tree.structure(progress), [flat[name] for name in sorted(flat)])


def _to_host(progress: loop.Progress) -> loop.Progress:
    return jax.tree.map(np.asarray, progress)


def _read(stage: Stage, store: BlockStore, start: _Now) -> _Now:
    kept = store.read(0)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(start.progress)]
    if [np.shape(kept["progress"][name]) for name in sorted(kept["progress"])] != shapes:
        raise ValueError(f"store: {store.file(0)} holds other models than stage {stage.name}")
    progress = _like(start.progress, kept["progress"])
    return _Now(progress, kept.get("metrics", {}), kept.get("checks", {}))
