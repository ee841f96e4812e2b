"""Parameter trees: names, selection by pattern, partition into two trees with holes, size.

A parameter's name is its path joined by `/`, such as `dense_0/kernel`. A pattern is a regular
expression that must match the whole name; a tuple of patterns selects what any of them matches.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Tree: TypeAlias = Any  # a pytree of arrays, usually nested dicts with string keys
Pattern: TypeAlias = str | tuple[str, ...]


def named(tree: Tree) -> dict[str, Any]:
    """Leaves by name, in the tree's own order; holes (`None`) have no entry.

    Raises:
        ValueError: two leaves would have one name.

    >>> named({"dense": {"bias": 1.0, "kernel": 2.0}})
    {'dense/bias': 1.0, 'dense/kernel': 2.0}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two leaves have the name {twice[0]!r}; keys must not contain '/'")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested dict with these names: the inverse of `named` for trees of dicts.

    >>> nested({"dense/bias": 1.0, "dense/kernel": 2.0})
    {'dense': {'bias': 1.0, 'kernel': 2.0}}
    """
    out: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = out
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return out


def size(params: Tree) -> int:
    """Number of scalars in all leaves (arrays or `ShapeDtypeStruct`s).

    >>> size({"a": np.zeros((2, 3)), "b": np.zeros(4)})
    10
    """
    return sum(int(np.prod(np.shape(leaf), dtype=np.int64)) for leaf in jax.tree.leaves(params))


def select(tree: Tree, patterns: Pattern) -> Tree:
    """A tree of bools: which leaves have a name that one of the patterns matches in full.

    Raises:
        ValueError: a pattern matches nothing; the message lists the names there are.
    """
    return jax.tree.unflatten(jax.tree.structure(tree), selected(list(named(tree)), patterns))


def check_patterns(argument: str, patterns: Any) -> None:
    """Raises a ValueError for what is no pattern, before there are names to hold against it."""
    if not isinstance(patterns, str | tuple | list):
        raise ValueError(f"{argument} is {patterns!r}; a pattern or several are needed")
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{argument} has {pattern!r}, no regular expression: {error}"
            ) from None


def selected(names: list[str], patterns: Pattern, argument: str = "pattern") -> list[bool]:
    """Which names one of the patterns matches in full; raises as `select`, which see."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(
                f"{argument}: {pattern!r} matches no parameter; the names are: {', '.join(names)}"
            )
    return [any(re.fullmatch(pattern, name) for pattern in patterns) for name in names]


def partition(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """Splits a tree into (selected, rest); each has `None` where the other has the leaf.

    Args:
        tree: any pytree.
        mask: bools of the same structure, such as `select` gives.
    """
    selected = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)
    rest = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask)
    return selected, rest


def combine(first: Tree, second: Tree) -> Tree:
    """Fills the holes of one tree with the leaves of the other: the inverse of `partition`.

    Raises:
        ValueError: a leaf is present in both trees, or the structures differ.
    """

    def fill(a: Any, b: Any) -> Any:
        if a is not None and b is not None:
            raise ValueError("combine: both trees have a leaf in the same place")
        return b if a is None else a

    return map_holes(fill, first, second)


def map_holes(function: Callable[..., Any], *trees: Tree) -> Tree:
    """`jax.tree.map` whose function is called with holes (`None`) as well."""
    return jax.tree.map(function, *trees, is_leaf=lambda leaf: leaf is None)


def stack(trees: Iterable[Tree]) -> Tree:
    """Equal trees as one with a new leading axis; NumPy arrays stay on the host."""

    def joined(*leaves: Any) -> Any:
        on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        return np.stack(leaves) if on_host else jnp.stack(leaves)

    return jax.tree.map(joined, *trees)


def take(tree: Tree, index: Any) -> Tree:
    """The rows of every leaf that an index, slice or array selects on the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def digest(tree: Tree) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes: equal trees have equal digests."""
    sha = hashlib.sha256()
    for name, leaf in named(tree).items():
        array = np.asarray(leaf)
        sha.update(f"{name}:{array.dtype}:{array.shape};".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
