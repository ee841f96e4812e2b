"""The border to Flax: a network is split once into two pure functions over plain dicts."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx

from jaxunlearn.core import chunks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.tree import Tree


class Model(NamedTuple):
    """A network as pure functions.

    `apply` has three static switches, which `train` sets where they are None:

    - `statistics`: what normalisation layers (BatchNorm) divide by: "running" (False) or "batch"
      (True), a number or a `Mixture`, see `Statistics`.
    - `update_statistics`: whether those of the batch enter the running ones, in the `stats` that
      come back: False, or True (True, unless `statistics` is "running").
    - `random`: whether layers draw random numbers (dropout) from `key`: False or True.

    and one that may be traced: `examples`, bool [B], those that statistics of the batch are
    taken of (all by default). A network without such layers ignores them.

    Attributes:
        init: `init(key) -> (params, stats)`, plain nested dicts with string keys.
        apply: `apply(params, stats, *inputs, train=False, key=None, statistics=None,
            update_statistics=None, random=None, examples=None,
            **static) -> (outputs, stats)`.
    """

    init: Callable[[Key], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]


class Mixture(NamedTuple):
    """Statistics between the running ones and the batch's: share * batch + (1 - share) * running.

    Attributes:
        share: from 0 to 1.
        unbiased: whether the variance of the batch divides by n - 1, and not by n.
        moving: whether an update keeps the mixture as the running statistics; else it goes by the
            layer's momentum.
    """

    share: float
    unbiased: bool = False
    moving: bool = False


Source: TypeAlias = str | float | Mixture


class Statistics(NamedTuple):
    """How a normalisation layer gets its statistics and keeps them.

    Attributes:
        source: "running"; "batch"; a `Mixture`; or a number, the share of one (Schneider et al.
            2020).
        update: whether the running statistics move towards the batch's, by the layer's momentum.
        examples: which of them statistics of the batch are taken of, bool [B]; by default all.
            Without any they are 0 and 0.
    """

    source: Source = "running"
    update: bool = False
    examples: jax.Array | None = None

    @property
    def mixture(self) -> Mixture | None:
        """The mixture, of a source that is one."""
        if isinstance(self.source, str):
            return None
        return self.source if isinstance(self.source, Mixture) else Mixture(self.source)


RUNNING = Statistics()


class Switches(NamedTuple):
    """What a call of `Model.apply` asks for; see `Model`."""

    train: bool
    statistics: Statistics
    random: bool


def switches(
    train: bool = False,
    statistics: Source | None = None,
    update_statistics: bool | None = None,
    random: bool | None = None,
    examples: jax.Array | None = None,
) -> Switches:
    """The switches, those that are None set by `train`.

    Raises:
        ValueError: a value that is none of a switch, or an update without statistics of the batch.
    """
    source = ("batch" if train else "running") if statistics is None else statistics
    share = source.share if isinstance(source, Mixture) else source
    is_name = isinstance(share, str) and share in ("running", "batch")
    is_share = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
    if not (is_name or is_share):
        raise ValueError(
            f"statistics is {statistics!r}; 'running', 'batch' or a number from 0 to 1 (the share "
            "of the batch) is needed"
        )
    for name, value in {"update_statistics": update_statistics, "random": random}.items():
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}; True, False or None is needed")
    if update_statistics and source == "running":
        raise ValueError(
            "update_statistics is True with statistics 'running', for which none are computed of "
            "the batch; 'batch' or a number from 0 to 1 is needed (0 divides by the running ones)"
        )
    train = bool(train)
    if update_statistics is None:
        update_statistics = train and source != "running"
    draws = train if random is None else random
    return Switches(train, Statistics(source, update_statistics, examples), draws)


def stateless(
    init: Callable[[Key], tuple[Tree, Tree]], apply: Callable[..., tuple[Any, Tree]]
) -> Model:
    """A `Model` of pure functions that know neither statistics nor random numbers.

    `apply(params, stats, *inputs, **static)` is not given the contract's switches, but they are
    checked.
    """

    def switched(
        params: Tree, stats: Tree, *inputs: Any, key: Key | None = None, **static: Any
    ) -> tuple[Any, Tree]:
        del key
        _take_switches(static)
        return apply(params, stats, *inputs, **static)

    return Model(init, switched)


def _take_switches(static: dict[str, Any]) -> Switches:
    """Takes the switches out of the arguments of a call."""
    names = [name for name in inspect.signature(switches).parameters if name in static]
    return switches(**{name: static.pop(name) for name in names})


def predict(model: Model, params: Tree, stats: Tree, x: jax.Array, chunk: int = 500) -> jax.Array:
    """The outputs for any number of inputs, in eval mode, a chunk at a time to bound the memory.

    The model has one input and one output: x [n, ...] gives [n, ...].
    """
    return chunks.mapped(lambda part: model.apply(params, stats, part)[0], x, chunk)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Makes a `Model` of a Flax NNX module.

    The module's `__call__(*inputs, **static)` gets what it names of these:

    - `statistics: Statistics`, for its BatchNorms;
    - `random: bool`, whether it shall draw random numbers, and `key` to draw them from;
    - `train: bool`, the plain form: of a module that names neither of the first two it stands for
      both, and a call that wants them apart is an error.

    Indices of `nnx.List` become zero-padded strings (`layers/002/kernel`), so that the order of
    names is the order of layers, also after a checkpoint.

    Args:
        build: constructor, `build(rngs) -> module`.

    Raises:
        ValueError: the module holds state other than parameters and BatchNorm statistics (such as
            an `nnx.Dropout` built with `rngs`); or, at `apply`, random numbers without a key for
            a module that takes one, or a bad switch.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, *states = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
    like_params, like_stats, rest = (nnx.to_pure_dict(state) for state in states)
    _check_no_rest(abstract, rest)
    border = _Border(
        type(abstract).__name__,
        frozenset(inspect.signature(type(abstract).__call__).parameters),
        bool(jax.tree.leaves(like_stats)),
    )

    @jax.jit  # one program; layer by layer a deep network would take a minute to compile
    def init(key: Key) -> tuple[Tree, Tree]:
        _, params, stats, _ = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...)
        return _to_strings(nnx.to_pure_dict(params)), _to_strings(nnx.to_pure_dict(stats))

    def apply(
        params: Tree, stats: Tree, *inputs: Any, key: Key | None = None, **static: Any
    ) -> tuple[Any, Tree]:
        by = "random" if static.get("random") else "train"
        static |= border.arguments(_take_switches(static), key, by)
        module = nnx.merge(
            graphdef, _to_original(params, like_params), _to_original(stats, like_stats)
        )
        outputs = module(*inputs, **static)
        return outputs, _to_strings(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))

    return Model(init, apply)


def _check_no_rest(module: nnx.Module, rest: Tree) -> None:
    if jax.tree.leaves(rest):
        names = sorted(jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(rest))
        raise ValueError(
            f"{type(module).__name__} holds state that is neither parameter nor BatchNorm "
            f"statistic: {', '.join(names)}. Layers must take their key at call, not hold rngs: "
            "build `nnx.Dropout(rate)` without rngs, let the module's `__call__` take `random` and "
            "`key`, and call the layer with `deterministic=not random, rngs=key`."
        )


class _Border(NamedTuple):
    """What a module's `__call__` takes of the switches."""

    name: str
    accepted: frozenset[str]
    has_statistics: bool

    def arguments(self, asked: Switches, key: Key | None, by: str) -> dict[str, Any]:
        """The arguments of the call; the one named `by` asked for random numbers."""
        given: dict[str, Any] = {"statistics": asked.statistics, "random": asked.random, "key": key}
        if "key" in self.accepted and asked.random and key is None:
            raise ValueError(
                f"{self.name} draws random numbers in training: apply(..., {by}=True) needs key=..."
            )
        if "train" in self.accepted:
            given["train"] = self._train(asked)
        return {name: value for name, value in given.items() if name in self.accepted}

    def _train(self, asked: Switches) -> bool:
        """The `train` that says the same as the switches that the module does not name."""
        meant = {}
        if self.has_statistics and "statistics" not in self.accepted:
            source, update, examples = asked.statistics
            usual = {("batch", True): True, RUNNING[:2]: False}
            meant["statistics"] = usual.get((source, update)) if examples is None else None
        if "key" in self.accepted and "random" not in self.accepted:
            meant["random"] = asked.random
        values = set(meant.values())
        if len(values) > 1 or None in values:
            raise ValueError(
                f"{self.name}.__call__ takes train, which stands for {' and '.join(meant)}; for "
                f"{asked.statistics} with random={asked.random} it must take statistics and random"
            )
        return values.pop() if values else asked.train


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
