"""Weights in a store: the frozen base, and one generation after another of every order.

base/HASH.npz          the base, under the hash of its arrays
orders/NUMBER.npz      an order of a shard: one adapter, and the head after each stage
"""

import shutil
from collections.abc import Iterable

from jaxunlearn.core import checkpoint
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact.files import Files, file_digest


class Weights:
    """The files that hold a store's weights."""

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
