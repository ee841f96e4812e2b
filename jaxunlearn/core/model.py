"""The border to Flax: a network is split once into two pure functions over plain dicts."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxunlearn.core import chunks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.tree import Tree


class Model(NamedTuple):
    """A network as pure functions.

    Attributes:
        init: `init(key) -> (params, stats)`, plain nested dicts with string keys.
        apply: `apply(params, stats, *inputs, train=False, key=None, **static) -> (outputs, stats)`.
            `train=True` uses batch statistics in BatchNorm and returns updated `stats`; layers that
            draw random numbers take `key`.
    """

    init: Callable[[Key], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]


def predict(model: Model, params: Tree, stats: Tree, x: jax.Array, chunk: int = 500) -> jax.Array:
    """The outputs for any number of inputs, in eval mode, a chunk at a time to bound the memory.

    Args:
        model: a network with one input and one array of outputs.
        params: its parameters.
        stats: its statistics.
        x: inputs, [n, ...].
        chunk: inputs computed together.

    Returns:
        Outputs, [n, ...].
    """
    return chunks.mapped(lambda part: model.apply(params, stats, part)[0], x, chunk)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Makes a `Model` of a Flax NNX module.

    The module's `__call__(*inputs, **static)` may also take `train: bool` and `key`; they are
    passed on if it names them. Indices of `nnx.List` become zero-padded strings
    (`layers/002/kernel`), so that the order of names is the order of layers, also after a
    checkpoint.

    Args:
        build: constructor, `build(rngs) -> module`.

    Raises:
        ValueError: the module holds state other than parameters and BatchNorm statistics (such as
            an `nnx.Dropout` built with `rngs`); or, at `apply`, `train=True` without a key for a
            module that takes one.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, *states = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
    like_params, like_stats, rest = (nnx.to_pure_dict(state) for state in states)
    if jax.tree.leaves(rest):
        names = sorted(jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(rest))
        raise ValueError(
            f"{type(abstract).__name__} holds state that is neither parameter nor BatchNorm "
            f"statistic: {', '.join(names)}. Layers must take their key at call, not hold rngs."
        )
    accepted = inspect.signature(type(abstract).__call__).parameters

    @jax.jit  # one program; layer by layer a deep network would take a minute to compile
    def init(key: Key) -> tuple[Tree, Tree]:
        _, params, stats, _ = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...)
        return _to_strings(nnx.to_pure_dict(params)), _to_strings(nnx.to_pure_dict(stats))

    def apply(
        params: Tree,
        stats: Tree,
        *inputs: Any,
        train: bool = False,
        key: Key | None = None,
        **static: Any,
    ) -> tuple[Any, Tree]:
        if "train" in accepted:
            static["train"] = train
        if "key" in accepted:
            if train and key is None:
                raise ValueError(
                    f"{type(abstract).__name__} draws random numbers in training: "
                    "apply(..., train=True) needs key=..."
                )
            static["key"] = key
        module = nnx.merge(
            graphdef, _to_original(params, like_params), _to_original(stats, like_stats)
        )
        outputs = module(*inputs, **static)
        return outputs, _to_strings(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))

    return Model(init, apply)


def _to_strings(tree: Tree) -> Tree:
    if not isinstance(tree, dict):
        return tree
    width = max([3, *(len(str(key)) for key in tree if isinstance(key, int))])
    return {
        f"{key:0{width}d}" if isinstance(key, int) else key: _to_strings(value)
        for key, value in tree.items()
    }


def _to_original(tree: Tree, like: Tree) -> Tree:
    """Undoes `_to_strings`; `like` is the module's own abstract state."""
    if not isinstance(like, dict):
        return tree
    if set(tree) != set(_to_strings(like)):
        raise ValueError(
            f"the tree has entries {sorted(tree)}; the network needs {sorted(_to_strings(like))}"
        )
    return {
        key: _to_original(tree[name], like[key])
        for key, name in zip(like, _to_strings(like), strict=True)
    }
