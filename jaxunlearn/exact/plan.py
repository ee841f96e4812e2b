"""What decides a run of sequence-aware sharded, sliced training, before any data is seen.

What a run computes is a function of its plan and of the slices it has read, and of nothing else:
sizes are padded to the plan's, so that no other slice can show through in a shape, a number of
steps, or an order of batches. That is what makes a deletion exact.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from jaxunlearn.core import checks, typed
from jaxunlearn.exact import orders as orders_

Prefix = tuple[int, tuple[int, ...]]  # a shard, and the first slices of one of its orders


@dataclasses.dataclass(frozen=True)
class StageRecipe:
    """How one stage trains; defaults are those of S3T for ViT-base (official code).

    Attributes:
        rank: rank of the adapters.
        alpha: numerator of their scale alpha / sqrt(rank), "rank-stabilised".
        learning_rate: first learning rate of AdamW without weight decay; it falls linearly to 0 in
            every stage.
        epochs: epochs of a stage, over all slices it has read so far.
        batch_size: rows of a step, places that a slice leaves empty included.
        dropout: dropout rate of what adapters read while a stage trains, those of earlier stages
            included.
        augment: augmentations of images, fresh in every step, in this order: "crop" (shifted by up
            to an eighth of the side, zeros move in) and "flip" (mirrored, with probability 1/2).
    """

    rank: int = 16
    alpha: float = 16.0
    learning_rate: float = 2e-4
    epochs: int = 15
    batch_size: int = 64
    dropout: float = 0.1
    augment: tuple[Literal["crop", "flip"], ...] = ()

    def __post_init__(self):
        typed.check("recipe", self, StageRecipe)
        for name in ("rank", "epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value}; a whole number of at least 1 is needed")
        for name in ("alpha", "learning_rate"):
            checks.positive(name, getattr(self, name))
        checks.at_least("dropout", self.dropout, 0, 1)
        if unknown := set(self.augment) - {"crop", "flip"}:
            raise ValueError(f"augment has {sorted(unknown)}; crop and flip are allowed")


def recipe_of(record: dict[str, Any]) -> StageRecipe:
    """A recipe from its JSON-like form."""
    fields: dict[str, Any] = record | {"augment": tuple(record["augment"])}
    return StageRecipe(**fields)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shards, slices, orders, and everything that fixes the arithmetic.

    Attributes:
        orders: B permutations of its L slices for every shard, nested tuples [m][B][L].
        capacity: examples that a slice has room for; what it does not fill is masked.
        recipe: how each stage trains.
        layers_per_slice: layers that a stage trains.
        direction: which of the adapted layers, always the topmost of the network, the first stage
            trains: the uppermost ("top_down", the paper's) or the lowest ("bottom_up").
        lane_width: prefixes that train together as one program.
        cached: whether the layers below a stage's are evaluated once, or in every step, as they
            must be with augmentation.
        seed: seed of adapters and batches.
    """

    orders: tuple[tuple[tuple[int, ...], ...], ...]
    capacity: int
    recipe: StageRecipe = StageRecipe()
    layers_per_slice: int = 1
    direction: Literal["top_down", "bottom_up"] = "top_down"
    lane_width: int = 1
    cached: bool = True
    seed: int = 0

    def __post_init__(self):
        orders = np.array([list(map(list, shard)) for shard in self.orders])
        if orders.ndim != 3:
            raise ValueError(f"orders have shape {list(orders.shape)}; [m, B, L] is needed")
        orders_.check(orders)
        for shard, of_shard in enumerate(self.orders):
            if len(set(of_shard)) < len(of_shard):
                raise ValueError(f"orders of shard {shard} have one twice")
        for name in ("capacity", "layers_per_slice", "lane_width"):
            checks.at_least(name, getattr(self, name), 1)
        checks.one_of("direction", self.direction, ("top_down", "bottom_up"))
        if self.cached and self.recipe.augment:
            raise ValueError("cached is True; with augmentation what lies below a stage changes")
        if self.recipe.batch_size > self.capacity:
            raise ValueError(
                f"batch_size is {self.recipe.batch_size}; it must be at most capacity = "
                f"{self.capacity}"
            )

    @property
    def table(self) -> np.ndarray:
        """The orders as int64 [m, B, L]."""
        return np.array(self.orders, np.int64)

    @property
    def n_shards(self) -> int:
        """The number of shards, m."""
        return len(self.orders)

    @property
    def n_slices(self) -> int:
        """The number of slices of a shard, L."""
        return len(self.orders[0][0])

    @property
    def budget(self) -> int:
        """The number of orders of a shard, B."""
        return len(self.orders[0])

    @property
    def n_adapted(self) -> int:
        """The number of layers that get adapters."""
        return self.n_slices * self.layers_per_slice

    @property
    def program(self) -> "Plan":
        """One plan for all those that are compiled to the same programs: they differ in data."""
        return dataclasses.replace(self, orders=((tuple(range(self.n_slices)),),), seed=0)

    def group(self, level: int) -> tuple[int, int]:
        """The first of the adapted layers that stage `level` trains, and the one after its last.

        Counted from the lowest adapted layer; stages are counted from 1.
        """
        place = self.n_slices - level if self.direction == "top_down" else level - 1
        return place * self.layers_per_slice, (place + 1) * self.layers_per_slice

    def n_steps(self, level: int) -> int:
        """Steps of the stage that reads the level-th slice of an order."""
        return self.recipe.epochs * (level * self.capacity // self.recipe.batch_size)

    def prefixes(self, level: int) -> list[Prefix]:
        """The different prefixes of `level` slices of all orders: each is trained once."""
        return list(
            dict.fromkeys(
                (shard, order[:level])
                for shard, of_shard in enumerate(self.orders)
                for order in of_shard
            )
        )


def make(n_shards: int, orders: np.ndarray, capacity: int, **settings) -> Plan:
    """A plan whose shards all have the same orders [B, L]."""
    of_shard = tuple(tuple(map(int, order)) for order in orders_.check(orders))
    return Plan((of_shard,) * n_shards, capacity, **settings)
