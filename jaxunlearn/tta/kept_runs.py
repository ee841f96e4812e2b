"""Runs of a method over a stream in blocks of batches, each of which is kept on disk."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import tree
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.keys import Key
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.tta import adaptation, lanes
from jaxunlearn.tta.deployment import Deployment
from jaxunlearn.tta.method import Method

_MOST = 50  # batches of a block


def adapted(
    method: Method,
    deployment: Deployment,
    images: jax.Array,
    tables: dict[str, np.ndarray],
    keys: Sequence[Key],
    *,
    blocks: BlockStore,
    point: ResumePoint,
    report: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """All batches of all runs; a stopped call goes on from its last block to the same bits.

    Args:
        method: the method.
        deployment: what it adapts.
        images: [images, H, W, C].
        tables: of a feed, for all runs: [S, T, ...], with `place`, which is not read.
        keys: of the runs, S of them.
        blocks: where what was seen is kept.
        point: where the state is kept.
        report: told the number of batches that are done.

    Returns:
        What `lanes.advance` saw, [S, N, ...] in the order of the stream for `predictions` and
        `entropy`, [S, T] for `finite`, and [S, blocks] for `drift`.
    """
    n_batches = tables["rows"].shape[1]
    size = block_size(n_batches)
    n_blocks = -(-n_batches // size)
    if not all(i in blocks for i in range(n_blocks)):
        runs, done = _begun(method, deployment, keys, point)
        _, runs["frozen"] = tree.partition(deployment.params, method.trainable(deployment.params))
        on_device = {key: jnp.asarray(tables[key]) for key in tables if key != "place"}
        data = adaptation.data(method, deployment, images, tree.take(on_device, 0))
        reads = (data, on_device, jnp.stack(keys))
        how: dict[str, Any] = {"method": method, "network": deployment.network}
        report(done * size)
        for number in range(done, n_blocks):
            at = number * size
            own = {name: runs[name] for name in ("shared", "initial")}
            runs["state"], seen = lanes.advance(
                runs["state"],
                own,
                runs["frozen"],
                *reads,
                at,
                n_steps=min(size, n_batches - at),
                **how,
            )
            blocks.write(number, jax.device_get(seen))
            point.write(own | {"state": runs["state"]}, at={"blocks": np.array(number + 1)})
            report(min(at + size, n_batches))
    point.drop()
    report(n_batches)
    read = [blocks.read(i) for i in range(n_blocks)]
    joined = {name: np.concatenate([block[name] for block in read], 1) for name in read[0]}
    return joined | {name: _in_order(joined[name], tables) for name in ("predictions", "entropy")}


def block_size(n_batches: int) -> int:
    """Batches of a block: a divisor of their number where one is near, so that one program does."""
    divisors = [size for size in range(1, _MOST + 1) if n_batches % size == 0]
    best = max(divisors)
    return best if best >= min(_MOST // 4, n_batches) else min(_MOST, n_batches)


def _begun(
    method: Method, deployment: Deployment, keys: Sequence[Key], point: ResumePoint
) -> tuple[lanes.Lanes, int]:
    """The runs as they were kept last, and how many blocks are behind them."""

    def begin() -> lanes.Lanes:
        begun = lanes.begin(method, deployment, keys)
        return {name: begun[name] for name in ("state", "shared", "initial")}

    kept = point.read(jax.eval_shape(begin))
    if kept is not None:
        runs, beside = kept
        return jax.tree.map(jnp.asarray, runs), int(beside["at"]["blocks"])
    runs = begin()
    point.write(runs, at={"blocks": np.array(0)})
    return runs, 0


def _in_order(values: np.ndarray, tables: dict[str, np.ndarray]) -> np.ndarray:
    """Values of rows of batches [S, T, B], or of windows [S, T], by their place, [S, N]."""
    if values.ndim == 2:
        return values
    place, counts = tables["place"], tables.get("valid", np.ones(values.shape, bool))
    out = np.zeros((len(values), place.max() + 1), values.dtype)
    for one, of_run, at, valid in zip(out, values, place, counts, strict=True):
        one[at[valid]] = of_run[valid]
    return out
