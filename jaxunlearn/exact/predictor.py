"""A store that answers: the mean over its living shards, as the ledger is at that moment."""

import os
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import checkpoint
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import deletion, serving
from jaxunlearn.exact.examples import check_inputs
from jaxunlearn.exact.files import Files, file_digest
from jaxunlearn.exact.sliceable import config_of, network_of
from jaxunlearn.exact.store import Store


class Weights:
    """The files of weights: the frozen base, and one generation after another of every order.

    base/HASH.npz          the base, under the hash of its arrays
    orders/NUMBER.npz      an order of a shard: one adapter, and the head after each stage
    """

    def __init__(self, files: Files):
        self._files = files
        self._orders = BlockStore(files.folder / "orders")

    def base(self) -> Tree:
        """The frozen base, checked against its hash."""
        try:
            return checkpoint.load_shared(self._files.folder / "base", self._files.base)
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename} is not there") from error

    def write(self, shard: int, order: int, generation: int, weights: Tree) -> str:
        """Writes one generation of an order; returns the hash of its file."""
        number = self._number(shard, order, generation)
        self._orders.write(number, weights)
        return file_digest(self._orders.file(number))

    def read(self, shard: int, order: int, generation: int, digest: str) -> Tree:
        """Reads one generation of an order; raises a DamagedError if its file has another hash."""
        number = self._number(shard, order, generation)
        file = self._orders.file(number)
        try:
            if file_digest(file) != digest:
                raise DamagedError(f"{file} is damaged: it is not what the ledger says")
            return self._orders.read(number)
        except FileNotFoundError as error:
            raise DamagedError(f"{file} is not there") from error

    def sweep(self, current: Iterable[tuple[int, int, int]]) -> None:
        """Removes all files of orders but the current generations, and what killed runs left.

        These hold what was learned from slices that may have been deleted since.

        Args:
            current: shard, order and generation of every order.
        """
        keep = {self._orders.file(self._number(*key)).name for key in current}
        folder = self._orders.path
        for file in folder.iterdir() if folder.exists() else ():
            if file.name not in keep:
                file.unlink()
        shutil.rmtree(self._files.folder / "work", ignore_errors=True)

    def _number(self, shard: int, order: int, generation: int) -> int:
        plan = self._files.plan
        return (generation * plan.n_shards + shard) * plan.budget + order


class Predictor(Store):
    """A store with its network.

    Attributes:
        config: config of the network.
        network: the network.
        weights: the files of weights.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        with reading(self.folder / "plan.json", DamagedError):
            self.config = config_of(self.files.network)
            self.network = network_of(self.config)
        self.weights = Weights(self.files)
        self._base: Tree | None = None
        self._served: tuple[Any, Tree] | None = None  # what it is, and on the device

    @property
    def base(self) -> Tree:
        """The frozen base, on the device."""
        if self._base is None:
            self._base = jax.device_put(self.weights.base())
        return self._base

    def order(self, shard: int, order: int) -> Tree:
        """Weights of the last generation of an order; raises a DamagedError."""
        generation = self.state.trained[shard, order]
        return self.weights.read(shard, order, generation.number, generation.sha256)

    def predict(self, x: np.ndarray, *, batch: int = 256, **rest: np.ndarray) -> np.ndarray:
        """The mean output of the living shards, [n, ...]; see `sliceable` for what outputs are.

        Before every batch the ledger is looked at: a deletion that was acknowledged before then is
        in effect. Weights are read from disk and put on the device when what is served changes.

        Args:
            x: what the network reads, e.g. images [n, H, W, C].
            batch: rows of a batch.
            **rest: what its outputs need beside that: `where` and `labels` of a language model.

        Raises:
            ValueError: no shard is alive, or inputs of another shape.
            DamagedError: the ledger or a file that is needed is damaged.
        """
        check_inputs(self.config, x)
        if len(x) < 1 or batch < 1:
            raise ValueError(f"x has {len(x)} rows and batch is {batch}; at least 1 are needed")
        needed = self.network.output_arrays
        if set(rest) != set(needed) or any(len(leaf) != len(x) for leaf in rest.values()):
            rows = {name: len(leaf) for name, leaf in rest.items()}
            raise ValueError(
                f"x has {len(x)} rows, the rest {rows}; as many of {list(needed)} are needed"
            )
        examples, outputs = {"x": x, **rest}, []
        batch = min(batch, 1 << (len(x) - 1).bit_length())  # few rows are not filled up to many
        for at in range(0, len(x), batch):
            part = {name: np.asarray(leaf)[at : at + batch] for name, leaf in examples.items()}
            chosen, alive = self._current(self._now_served)
            outputs.append(
                serving.predict(
                    self.network, self.plan, self.base, chosen, part, alive, chunk=batch
                )
            )
        return np.concatenate(outputs)

    def _now_served(self) -> tuple[Tree, np.ndarray]:
        """What each shard answers with, and which of them do, as the ledger is now."""
        served = deletion.served(self.surviving())
        return self._chosen(served), served.depth > 0

    def _chosen(self, served: deletion.Served) -> Tree:
        """What each shard answers with, on the device; read from disk where it changed."""
        if not (served.depth > 0).any():
            raise ValueError("no shard is alive: the ensemble must be trained again")
        living = int(np.argmax(served.depth > 0))
        # A dead shard's weights are not read; those of a living one stand in.
        keys = [
            (a, int(b)) if depth else (living, int(served.order[living]))
            for a, (b, depth) in enumerate(zip(served.order, served.depth, strict=True))
        ]
        what = ([self.state.trained[key] for key in keys], keys, served.depth.tolist())
        if self._served is None or self._served[0] != what:
            orders = [self.order(*key) for key in keys]
            weights = jax.tree.map(lambda *leaves: np.stack(leaves)[:, None], *orders)
            only = deletion.Served(np.zeros_like(served.order), served.depth)
            chosen = serving.chosen(self.plan, self.network, weights, only)
            self._served = (what, jax.device_put(chosen))
        return self._served[1]
