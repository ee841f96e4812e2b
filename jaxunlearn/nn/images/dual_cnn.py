"""A lightweight CNN of two branches, trained apart and then fused (Isong 2025, arXiv 2501.15547).

Each branch is two 3x3 convolutions without padding, with ReLU and 2x2 max-pools, and a linear layer
over the map that is left. Two branches read two inputs and answer twice (`dual`). Fused, both read
one input; each linear layer has become a convolution as large as its map, with ReLU; and two small
layers read what these give.

With C channels, n filters, K classes, h hidden units and maps of s x t pixels, the dual model has
2 [(9 C + 1) n + (9 n + 1) 2n + (2 n s t + 1) K] parameters, and the fused one
(2 K + 1) h + (h + 1) K more: 13,860 and 14,862 for 28 x 28 x 1, 18,620 and 19,622 for 32 x 32 x 3.
"""

import functools
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core import tree
from jaxunlearn.core.checks import whole
from jaxunlearn.core.keys import Key
from jaxunlearn.core.model import Model, from_nnx
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.cpu import batch_last
from jaxunlearn.nn.images import shapes
from jaxunlearn.nn.layers.convolution import Conv

BRANCHES = ("branch_1", "branch_2")
DROPOUT = 0.5  # of the hidden layer

_HE_NORMAL = nnx.initializers.he_normal()
_GLOROT = nnx.initializers.glorot_uniform()


class Pair(NamedTuple):
    """The two models of one architecture.

    Attributes:
        dual: `apply(params, stats, x_1, x_2) -> (logits_1, logits_2)`, each [B, n_classes]: every
            branch on an input of its own.
        fused: `apply(params, stats, x) -> logits` [B, n_classes]; in training dropout draws from
            `key`. Its branches have the names they have in `dual`; a head is stored as the kernel
            of a convolution, [s, t, 2 n, n_classes]. With `stop_at="heads"` it gives what both
            heads say, [B, 2 n_classes], and with `start_at="heads"` it reads that.
    """

    dual: Model
    fused: Model


def build(
    input_shape: tuple[int, int, int], n_classes: int = 10, filters: int = 10, hidden: int = 32
) -> Pair:
    """The dual and the fused model, with the paper's initialisers (He normal, Glorot uniform).

    Images are floats, [B, *input_shape]. On a CPU derivatives are reverse-mode only, as those of
    `nn.conv`. The same sizes give the same models, so that `jit` finds their programs again.

    Args:
        input_shape: (height, width, channels) of an image, both sides at least 10.
        n_classes: number of classes, K.
        filters: outputs of a branch's first convolution, n; the second has twice as many.
        hidden: units between the heads and the answer, h.

    Raises:
        ValueError: a size that is too small, or no number of classes.
    """
    return _build(_sizes(input_shape, n_classes, filters, hidden))


@functools.cache
def _build(sizes: "_Sizes") -> Pair:
    return Pair(from_nnx(lambda rngs: Dual(sizes, rngs)), from_nnx(lambda rngs: Fused(sizes, rngs)))


def n_parameters(
    input_shape: tuple[int, int, int], n_classes: int = 10, filters: int = 10, hidden: int = 32
) -> tuple[int, int]:
    """Numbers of parameters of the dual and the fused model, by the formula.

    >>> n_parameters((28, 28, 1)), n_parameters((32, 32, 3))
    ((13860, 14862), (18620, 19622))
    """
    sizes = _sizes(input_shape, n_classes, filters, hidden)
    height, width, deep = sizes.map
    first = (9 * sizes.input_shape[2] + 1) * filters
    head = (height * width * deep + 1) * n_classes
    dual = 2 * (first + (9 * filters + 1) * deep + head)
    return dual, dual + (2 * n_classes + 1) * hidden + (hidden + 1) * n_classes


def fuse(dual_params: Tree, fused_params: Tree, heads: tuple[str, ...] = BRANCHES) -> Tree:
    """The surgery: parameters of the fused model with the branches of a trained dual one.

    Then the fused model's head i gives `relu(logits_i)` of the dual model's branch i, on any input,
    if `i` is among `heads`.

    Args:
        dual_params: parameters of `Pair.dual`.
        fused_params: parameters of `Pair.fused`, freshly drawn; what is not copied stays as it is.
        heads: branches whose linear layer becomes the convolution of the head. The paper's are
            both; the author's code copies the first and leaves the second as it was drawn.

    Raises:
        ValueError: an unknown branch, or layers of other sizes (of a head it is their product that
            counts: maps of 1 x 4 and 4 x 1 are not told apart).
    """
    if isinstance(heads, str):
        raise ValueError(f"heads is {heads!r}; a tuple of names of branches is needed")
    if unknown := [name for name in heads if name not in BRANCHES]:
        raise ValueError(f"heads has {unknown[0]!r}; {' and '.join(BRANCHES)} are allowed")
    for what, params in (("dual_params", dual_params), ("fused_params", fused_params)):
        if missing := [name for name in BRANCHES if name not in params]:
            raise ValueError(f"{what} has no {missing[0]!r}; it holds {', '.join(params)}")
    fused = {name: dict(layers) for name, layers in fused_params.items()}
    for name in BRANCHES:
        for layer, weights in dual_params[name].items():
            if layer != "head" or name in heads:
                fused[name][layer] = _reshaped(f"{name}/{layer}", weights, fused[name][layer])
    return fused


def _reshaped(name: str, weights: Tree, like: Tree) -> Tree:
    """A linear layer's kernel [s t 2n, K] is that of a convolution, row by row."""
    if tree.size(weights) != tree.size(like):
        raise ValueError(
            f"dual_params and fused_params: {name} has {tree.size(weights)} and {tree.size(like)} "
            "numbers; both must come from one `build`"
        )
    return jax.tree.map(lambda leaf, wanted: leaf.reshape(wanted.shape), weights, like)


class _Sizes(NamedTuple):
    input_shape: tuple[int, ...]
    n_classes: int
    filters: int
    hidden: int

    @property
    def map(self) -> tuple[int, int, int]:
        """Height, width and channels of what two convolutions and poolings leave."""
        height, width = (((side - 2) // 2 - 2) // 2 for side in self.input_shape[:2])
        return height, width, 2 * self.filters


def _sizes(input_shape: tuple[int, ...], n_classes: int, filters: int, hidden: int) -> _Sizes:
    numbers = {"n_classes": n_classes, "filters": filters, "hidden": hidden}
    return _Sizes(shapes.image_shape(input_shape, 10), *itertools.starmap(whole, numbers.items()))


class Head(nnx.Module):
    """A linear layer over a whole map [2n, s, t, B] -> [B, K].

    Its kernel [s, t, 2n, K] may be stored as [s t 2n, K].
    """

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs):
        self.kernel = nnx.Param(_GLOROT(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[-1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        deep, height, width, _ = x.shape
        bias = self.bias[...]
        kernel = self.kernel[...].reshape(height, width, deep, len(bias))
        return jnp.einsum("chwb,hwck->bk", x, kernel) + bias


class Branch(nnx.Module):
    """Convolution, ReLU, pool, twice; then a head: [B, H, W, C] -> [B, n_classes]."""

    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs, *, convolutional: bool):
        height, width, deep = sizes.map
        self.input_shape = sizes.input_shape
        self.conv_1 = Conv(sizes.input_shape[2], sizes.filters, padding=0, rngs=rngs)
        self.conv_2 = Conv(sizes.filters, deep, padding=0, rngs=rngs)
        shape = (height, width, deep) if convolutional else (height * width * deep,)
        self.head = Head((*shape, sizes.n_classes), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        shapes.check(x, self.input_shape)
        x = batch_last.enter(x)
        for layer in (self.conv_1, self.conv_2):
            assert layer.bias is not None
            x = batch_last.conv_max_pool(x, layer.kernel[...])
            # The same after the pool, on a quarter of the pixels: both preserve order.
            x = jax.nn.relu(x + layer.bias[...][:, None, None, None])
        return self.head(x)


class Dual(nnx.Module):
    """Two branches side by side, with an input and an output each."""

    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs):
        self.branch_1, self.branch_2 = (Branch(sizes, rngs, convolutional=False) for _ in BRANCHES)

    def __call__(self, x_1: jax.Array, x_2: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.branch_1(x_1), self.branch_2(x_2)


class Fused(nnx.Module):
    """Both branches on one input, and two layers that read their heads."""

    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs):
        self.branch_1, self.branch_2 = (Branch(sizes, rngs, convolutional=True) for _ in BRANCHES)
        n_heads, hidden = 2 * sizes.n_classes, sizes.hidden
        self.hidden = nnx.Linear(n_heads, hidden, kernel_init=_HE_NORMAL, rngs=rngs)
        self.out = nnx.Linear(hidden, sizes.n_classes, kernel_init=_GLOROT, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        random: bool = False,
        key: Key | None = None,
        start_at: Literal["image", "heads"] = "image",
        stop_at: Literal["heads", "logits"] = "logits",
    ) -> jax.Array:
        if start_at not in ("image", "heads") or stop_at not in ("heads", "logits"):
            raise ValueError(
                f"start_at is {start_at!r} and stop_at {stop_at!r}; image or heads, and heads or "
                "logits, are allowed"
            )
        if start_at == "image":
            x = jax.nn.relu(jnp.concatenate([self.branch_1(x), self.branch_2(x)], axis=-1))
        if stop_at == "heads":
            return x
        x = jax.nn.relu(self.hidden(x))
        if random:
            assert key is not None
            kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
            x = jnp.where(kept, x / (1 - DROPOUT), 0)
        return self.out(x)
