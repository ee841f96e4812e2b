"""The network that is adapted, as methods see it, and which of its parameters train."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import tree
from jaxunlearn.core.model import Model, Source
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.layers import norms


class Network(NamedTuple):
    """A classifier that normalises with statistics of the batch it sees.

    Attributes:
        model: images [B, H, W, C] in [0, 1] to logits [B, K]; for methods that read features,
            `apply(..., return_features=True)` gives (logits, features [B, D]).
        compute: type of the computation; parameters, statistics, averages and outputs stay float32.
    """

    model: Model
    compute: str = "float32"

    def logits(self, params: Tree, stats: Tree, x: jax.Array, **how: Any) -> jax.Array:
        """Logits [B, K]; `how` as in `outputs`."""
        return self.outputs(params, stats, x, **how)[0]

    def features(
        self, params: Tree, stats: Tree, x: jax.Array, **how: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, K] and features [B, D]; `how` as in `outputs`."""
        return self.outputs(params, stats, x, return_features=True, **how)[0]

    def outputs(
        self,
        params: Tree,
        stats: Tree,
        x: jax.Array,
        *,
        statistics: Source = "batch",
        update: bool = False,
        kept: jax.Array | None = None,
        **static: Any,
    ) -> tuple[Any, Tree]:
        """The network's outputs and its statistics; no layer draws random numbers.

        Args:
            params: all parameters.
            stats: running statistics.
            x: images.
            statistics: what BatchNorm divides by.
            update: whether the running statistics are updated.
            kept: bool [B], the examples that statistics of the batch are taken of.
            **static: switches of the network.
        """
        if kept is not None:
            static["examples"] = kept
        params, x = (self._cast(part) for part in (params, x))
        outputs, stats = self.model.apply(
            params,
            stats,
            x,
            statistics=statistics,
            update_statistics=update,
            random=False,
            **static,
        )
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs), stats

    def _cast(self, part: Tree) -> Tree:
        if self.compute == "float32":
            return part
        return jax.tree.map(lambda leaf: leaf.astype(self.compute), part)


def everything(params: Tree) -> Tree:
    """A mask that trains all parameters."""
    return jax.tree.map(lambda _: True, params)


def norm_affine(params: Tree) -> Tree:
    """A mask that trains scales and biases of normalisation layers, of which each has a `scale`.

    Raises:
        ValueError: the network has none.
    """
    patterns = norms.affine(params)
    if not patterns:
        raise ValueError(
            "the network has no normalisation layer with a scale, which this method trains"
        )
    return tree.select(params, patterns)
