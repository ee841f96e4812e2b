"""LoRA (Hu et al. 2021, arXiv 2106.09685) as a transformation of parameters.

`attach` replaces chosen kernels `W` by `LowRank(W, a, b, scale)`, which multiplies like the matrix
`W + scale a b` without ever forming it: `x @ kernel` means the same for both. Because a `LowRank`
is a pytree, everything that works on parameters works on adapters: the pattern `TRAINABLE` selects
them, holes keep the base out of gradients and optimizer, and a base without a models axis in
`shared` serves any number of adapters under `vmap`. Adapters nest: a frozen one below, a fresh one
on top.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import products, tree
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.tree import Tree

TRAINABLE = r"(?!.*/base/).*/lora_[ab]"  # the outermost adapters: others lie below a `base`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A matrix plus a scaled product of two thin ones: `base + scale lora_a lora_b`.

    Leading axes (such as the layers of a stack) belong to all four.

    Attributes:
        base: [..., n, m], an array or again a `LowRank`.
        lora_a: [..., n, r].
        lora_b: [..., r, m].
        scale: [...], float32 however short the type of the matrices (16/12 in bfloat16 is another
            function); 0 switches the adapter off, layer by layer, without another program.
    """

    base: Any
    lora_a: jax.Array
    lora_b: jax.Array
    scale: jax.Array

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return x @ self.base + products.thin(x, self.lora_a, self.lora_b, self.scale)

    def astype(self, dtype: Any) -> "LowRank":
        """The matrices in another type; the scale stays what it is."""
        a, b = self.lora_a.astype(dtype), self.lora_b.astype(dtype)
        return LowRank(self.base.astype(dtype), a, b, self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix it stands for."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The type of the matrix below."""
        return self.base.dtype

    def dense(self) -> jax.Array:
        """The matrix it stands for, computed in float32 and rounded once to the kernel's type."""
        kernel = self.base.dense() if isinstance(self.base, LowRank) else self.base
        scale = jnp.asarray(self.scale, jnp.float32)[..., None, None]
        update = scale * (self.lora_a.astype(jnp.float32) @ self.lora_b.astype(jnp.float32))
        return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropped:
    """An adapter whose input loses elements at random; the matrix below it reads all of them.

    Attributes:
        kernel: the adapter.
        key: typed keys [...], one for each kernel of a stack.
        rate: share of the elements that are lost, [...]; the others are divided by 1 - rate.
    """

    kernel: LowRank
    key: jax.Array
    rate: jax.Array

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        adapter, kept = self.kernel, 1 - self.rate
        some = jnp.where(jax.random.bernoulli(self.key, kept, x.shape), x / kept, 0).astype(x.dtype)
        return x @ adapter.base + products.thin(some, adapter.lora_a, adapter.lora_b, adapter.scale)

    def astype(self, dtype: Any) -> "Dropped":
        """Computes in another type."""
        return dataclasses.replace(self, kernel=self.kernel.astype(dtype))


def attach(
    params: Tree,
    targets: tree.Pattern,
    rank: int,
    alpha: float,
    key: Key,
    *,
    rank_stabilized: bool = False,
) -> Tree:
    """Puts a fresh adapter on every kernel that a pattern selects; the outputs stay the same bits.

    `lora_a` is drawn uniformly from +-1 / sqrt(n), which is PyTorch's Kaiming initialisation with
    a = sqrt(5), and `lora_b` is 0. Each kernel draws from the key folded by its name.

    Args:
        params: parameters; kernels have shape [..., n, m].
        targets: names of kernels; one that carries an adapter already gets a second one on top.
        rank: r, at most min(n, m).
        alpha: the scale is alpha / r.
        key: a typed key.
        rank_stabilized: scale alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732).

    Raises:
        ValueError: a pattern that matches nothing, a leaf that is no kernel, or a rank outside 1 to
            min(n, m).
    """

    def wrap(name: str, kernel: Any, chosen: bool) -> Any:
        if not chosen:
            return kernel
        if len(kernel.shape) < 2:
            raise ValueError(f"attach: {name} has shape {tuple(kernel.shape)}; it is no kernel")
        *stack, n, m = kernel.shape
        if not 1 <= rank <= min(n, m):
            raise ValueError(f"attach: rank is {rank}; {name} allows 1 to {min(n, m)}")
        scale = alpha / rank**0.5 if rank_stabilized else alpha / rank
        a = jax.random.uniform(fold(key, "lora", name), (*stack, n, rank), minval=-1, maxval=1)
        b = jnp.zeros((*stack, rank, m), kernel.dtype)
        a = (a / n**0.5).astype(kernel.dtype)
        return LowRank(kernel, a, b, scales(stack, scale, kernel.dtype))

    chosen = tree.selected(_kernel_names(params), targets, "targets")
    return _map_kernels(wrap, params, chosen)


def scales(stack: Sequence[int], scale: float, dtype: Any) -> jax.Array:
    """The scale of adapters on a stack of kernels of a type, in float32 at least."""
    return jnp.full(tuple(stack), scale, jnp.promote_types(dtype, jnp.float32))


def merge(params: Tree) -> Tree:
    """Plain parameters of the same function: every adapter is added to the kernel below it."""
    dense = lambda leaf: leaf.dense() if _is_adapter(leaf) else leaf  # noqa: E731
    return jax.tree.map(dense, params, is_leaf=_is_adapter)


def base(params: Tree) -> Tree:
    """The parameters below all adapters."""

    def below(leaf: Any) -> Any:
        while isinstance(leaf, LowRank):
            leaf = leaf.base
        return leaf

    return jax.tree.map(below, params, is_leaf=_is_adapter)


def switch(params: Tree, on: jax.Array) -> Tree:
    """Switches the outermost adapters: `on` is a traced mask, [] or one entry per layer [L]."""

    def scaled(leaf: Any) -> Any:
        if not _is_adapter(leaf):
            return leaf
        return dataclasses.replace(leaf, scale=(leaf.scale * on).astype(leaf.scale.dtype))

    return jax.tree.map(scaled, params, is_leaf=_is_adapter)


def drop(params: Tree, rate: float, key: Key) -> Tree:
    """Parameters whose outermost adapters read their input with dropout, for one step of training.

    Dropout of adapters as in PEFT: of what `lora_a` multiplies. Each kernel of a stack draws from
    the key folded by its name and its place.

    Args:
        params: parameters with adapters.
        rate: share of the elements that are lost, 0 <= rate < 1.
        key: a typed key, another one in every step.

    Raises:
        ValueError: a rate outside of its range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop: rate is {rate}; 0 <= rate < 1 is needed")

    def wrap(name: str, leaf: Any, chosen: bool) -> Any:
        if not chosen:
            return leaf
        stack = leaf.scale.shape
        keys = jax.random.split(fold(key, "drop", name), stack)
        return Dropped(leaf, keys, jnp.full(stack, rate, leaf.scale.dtype))

    leaves = jax.tree.leaves(params, is_leaf=_is_adapter)
    return _map_kernels(wrap, params, [_is_adapter(leaf) for leaf in leaves])


def split(params: Tree) -> tuple[Tree, Tree]:
    """(outermost adapters' matrices, everything else), each with holes: see `tree.partition`.

    The first part is what trains; stacked over models it needs one copy of the second.
    """
    return tree.partition(params, tree.select(params, TRAINABLE))


def load(params: Tree, adapter: Tree) -> Tree:
    """Puts other values into the outermost adapters.

    Args:
        params: parameters with adapters.
        adapter: matrices by name, such as `split` gives.

    Raises:
        ValueError: another set of kernels, or another shape; the kernel is named.
    """
    fresh, rest = split(params)
    wanted, given = tree.named(fresh), tree.named(adapter)
    for name in sorted(set(wanted) ^ set(given)):
        where = "in the adapter" if name in given else "in the network"
        raise ValueError(f"adapter: {name!r} is only {where}")
    for name, leaf in wanted.items():
        if np.shape(given[name]) != leaf.shape:
            raise ValueError(
                f"adapter: {name!r} has shape {list(np.shape(given[name]))}; "
                f"the network needs {list(leaf.shape)}"
            )
    leaves = [jnp.asarray(given[name], leaf.dtype) for name, leaf in wanted.items()]
    return tree.combine(jax.tree.unflatten(jax.tree.structure(fresh), leaves), rest)


def _is_adapter(leaf: Any) -> bool:
    return isinstance(leaf, LowRank)


def _kernel_names(params: Tree) -> list[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_adapter)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _map_kernels(wrap: Any, params: Tree, chosen: list[bool]) -> Tree:
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_adapter)
    wrapped = map(wrap, _kernel_names(params), leaves, chosen)
    return jax.tree.unflatten(structure, wrapped)
