"""TRAK: influence on a trained model's outputs from projected gradients.

Source: Park et al., TRAK: Attributing Model Behavior at Scale, 2023. Released code divides by the
mean absolute entry of the inverse, which leaves only the order of the scores: not so here. By
default `attribute` and `effect` also keep the weights p (1 - p) of the logistic Hessian, which TRAK
leaves out: a score then estimates by how much a point's presence changes the output, which
unlearning needs. Without them the scores of well-fitted points come out too small by orders.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

from jaxunlearn.attribution import masks as subsets
from jaxunlearn.core import chunks, losses
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.tree import Tree, size

# output(logits [K], y []) -> [T] numbers whose gradients are taken
Output = Callable[[jax.Array, jax.Array], jax.Array]
Projection = Literal["normal", "rademacher"]
_predict = jax.jit(predict, static_argnums=0)
_ROWS = 512  # rows of the projection that exist at once, unless it is below
_KEPT = 2**26  # numbers: 256 MiB
_HELD = 2**24


def margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The margin as the only output: [K] -> [1]."""
    return losses.margins(logits[None], y[None])


def all_logits(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Every logit as an output of its own: [K] -> [K]."""
    del y
    return logits


def scores(
    train_features: np.ndarray,
    target_features: np.ndarray,
    *,
    weights: np.ndarray,
    l2: float,
) -> np.ndarray:
    """weights * Phi (Phi' Phi + l2 I)^-1 Phi_target', in float64.

    Args:
        train_features: Phi, projected gradients of the training points' margins, [n, p].
        target_features: projected gradients of the targets' outputs, [m, p].
        weights: weight of each training point, [n]; 1 - p_y for cross-entropy.
        l2: not negative; 0 needs features of full rank.

    Returns:
        float64 [n, m], the effect of each training point's presence on each target.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a singular system.
    """
    phi, targets, weights = (
        np.asarray(a, np.float64) for a in (train_features, target_features, weights)
    )
    if phi.ndim != 2 or targets.ndim != 2 or phi.shape[1] != targets.shape[1]:
        raise ValueError(
            f"train_features are {list(phi.shape)} and target_features {list(targets.shape)}; "
            "[n, p] and [m, p] are needed"
        )
    if weights.shape != (len(phi),):
        raise ValueError(f"weights have shape {list(weights.shape)}; [{len(phi)}] is needed")
    for name, array in (
        ("train_features", phi), ("target_features", targets), ("weights", weights)
    ):  # fmt: skip
        if not np.isfinite(array).all():
            row = np.argwhere(~np.isfinite(array))[0][0]
            raise ValueError(f"{name}: row {row} is not finite")
    if not np.isfinite(l2) or l2 < 0:
        raise ValueError(f"l2 is {l2}; it must be finite and not negative")
    factor, dual = _factorise(phi, l2)
    solved = scipy.linalg.cho_solve(factor, phi @ targets.T if dual else targets.T)
    return weights[:, None] * (solved if dual else phi @ solved)


def _factorise(phi: np.ndarray, l2: float) -> tuple[Any, bool]:
    """The Cholesky factor of Phi' Phi + l2, or of Phi Phi' + l2 if that is smaller (dual).

    Phi (Phi' Phi + l2)^-1 = (Phi Phi' + l2)^-1 Phi: either gives the scores.
    """
    n, dim = phi.shape
    dual = n < dim and l2 > 0
    gram = phi @ phi.T if dual else phi.T @ phi
    gram[np.diag_indices_from(gram)] += l2
    try:
        factor = scipy.linalg.cho_factor(gram, lower=True)
        diagonal = np.abs(np.diag(factor[0]))
        if diagonal.min() < 1e-7 * diagonal.max():
            raise np.linalg.LinAlgError
    except np.linalg.LinAlgError:
        raise ValueError(
            f"l2 is {l2}, and the {n} train_features of {dim} numbers are not of full rank; a "
            "larger l2 or fewer numbers are needed"
        ) from None
    return factor, dual


def features(
    model: Model,
    params: Tree,
    stats: Tree,
    x: Any,
    y: Any,
    key: Key,
    *,
    dim: int = 2048,
    output: Output = margin,
    projection: Projection = "rademacher",
    chunk: int | None = None,
    store: BlockStore | None = None,
    callback: Callable[[int], None] | None = None,
    drawn: jax.Array | None = None,
) -> np.ndarray:
    """Projected per-example gradients of a model's outputs, in eval mode.

    The projection, a random matrix with entries of mean 0 and variance 1 / dim, depends on the key
    alone. Above 256 MiB it is drawn again for every chunk of examples: larger chunks are faster.

    Args:
        model: the network.
        params: all of its parameters; the gradient is taken with respect to them.
        stats: its statistics.
        x: inputs, [n, ...].
        y: labels, [n].
        key: the projection's key; training and target features need the same.
        dim: numbers per feature, p.
        output: what is differentiated, T numbers per example: `margin`, `all_logits` or another.
        projection: the distribution of its entries.
        chunk: examples at once; by default 8 to 1,024, as many as have gradients of 64 MiB.
        store: finished chunks are written here, and those already there are not computed again.
        callback: called with the number of examples that are done.
        drawn: the blocks of the projection, `draw(key, ...)`, where several calls share them.

    Returns:
        float32 [n, T, p].

    Raises:
        ValueError: x and y that do not match, a setting out of range, a gradient not finite.
    """
    x, y = np.asarray(x), np.asarray(y)
    chunk = _chunk_size(model, params, stats, x, y, dim, output, projection, chunk)
    drawn = _drawn_once(params, key, dim, projection) if drawn is None else drawn
    compute, blocks = functools.partial(_chunk, model, output, dim, projection), []
    for number, (rows, n_rows) in enumerate(chunks.blocks(len(x), chunk)):
        if store is not None and number in store:
            block = store.read(number)["features"]
        else:
            block = compute(params, stats, x[rows], y[rows], key, drawn)
            block = _finite(np.asarray(block)[:n_rows], rows)
            if store is not None:
                store.write(number, {"features": block})
        blocks.append(block)
        if callback is not None:
            callback(int(rows[-1]) + 1)
    return np.concatenate(blocks)


def _chunk_size(
    model: Model, params: Tree, stats: Tree, x, y, dim: int, output, projection, chunk: int | None
) -> int:
    """Examples of a chunk; raises a ValueError for an argument of `features` out of its range."""
    if y.shape != (len(x),) or len(x) == 0:
        raise ValueError(f"x are {list(x.shape)} and y {list(y.shape)}; [n, ...] and [n] fit")
    if chunk is None:
        leaves, structure = jax.tree.flatten((params, stats))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        n_outputs = _n_outputs(model, output, structure, shapes, (1, *x.shape[1:]), x.dtype)
        chunk = min(max(_HELD // (size(params) * n_outputs), 8), 1024)
    if dim < 1 or chunk < 1 or projection not in ("normal", "rademacher"):
        raise ValueError(
            f"features: dim is {dim}, chunk is {chunk}, projection is {projection!r}; dim >= 1, "
            "chunk >= 1 and 'normal' or 'rademacher' are needed"
        )
    return min(chunk, len(x))


def _finite(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(block).all((1, 2)))
    if len(bad):
        raise ValueError(f"the gradient of example {rows[bad[0]]} is not finite")
    return block


@functools.lru_cache(maxsize=64)
def _n_outputs(model: Model, output: Output, structure, shapes, image, dtype) -> int:
    """Numbers that an output has for one example."""

    def one(variables, x):
        params, stats = variables
        return output(model.apply(params, stats, x)[0][0], jnp.int32(0))

    leaves = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    example = jax.ShapeDtypeStruct(image, dtype)
    return jax.eval_shape(one, jax.tree.unflatten(structure, leaves), example).shape[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _chunk(model, output, dim, projection, params, stats, x, y, key, drawn):
    leaves, structure = jax.tree.flatten(params)

    def outputs(leaves, x, y):
        logits, _ = model.apply(jax.tree.unflatten(structure, leaves), stats, x[None])
        return output(logits[0], y)

    def flat_gradients(x, y):
        grads = jax.jacrev(outputs)(leaves, x, y)
        return jnp.concatenate([g.reshape(g.shape[0], -1) for g in grads], axis=1)

    grads = jax.vmap(flat_gradients)(x, y)  # [chunk, T, P]
    return project(grads, key, dim, projection, drawn)


def project(
    vectors: jax.Array,
    key: Key,
    dim: int,
    projection: Projection = "rademacher",
    drawn: jax.Array | None = None,
) -> jax.Array:
    """Multiplies by a random [P, dim] matrix, made in blocks of rows: [..., P] -> [..., dim].

    `drawn` are the blocks, if they are at hand (see `draw`); otherwise each one exists only while
    it is used.
    """
    length = vectors.shape[-1]
    n_blocks = -(-length // _ROWS)
    padded = jnp.pad(vectors.reshape(-1, length), ((0, 0), (0, n_blocks * _ROWS - length)))

    def add(total, block):
        number, matrix = block
        matrix = _block(key, number, dim, projection) if drawn is None else matrix
        entries = jax.lax.dynamic_slice_in_dim(padded, number * _ROWS, _ROWS, 1)
        return total + jnp.matmul(entries, matrix, precision=jax.lax.Precision.HIGHEST), None

    zero = jnp.zeros((len(padded), dim))
    total, _ = jax.lax.scan(add, zero, (jnp.arange(n_blocks), drawn))
    return (total / jnp.sqrt(dim)).reshape(*vectors.shape[:-1], dim)


def _block(key: Key, number: Any, dim: int, projection: Projection) -> jax.Array:
    """Rows of the random matrix, [_ROWS, dim], in units of 1 / sqrt(dim)."""
    sample = jax.random.normal if projection == "normal" else jax.random.rademacher
    return sample(fold(key, "projection", number), (_ROWS, dim), jnp.float32)


def _drawn_once(params: Tree, key: Key, dim: int, projection: Projection) -> jax.Array | None:
    """The blocks of the random matrix for these parameters, if they may be stored whole."""
    n_rows = size(params)
    return draw(key, n_rows, dim, projection) if n_rows * dim <= _KEPT else None


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw(key: Key, size: int, dim: int, projection: Projection = "rademacher") -> jax.Array:
    """All blocks of the random matrix, [blocks, rows, dim], for a small one that is used often."""
    return jax.lax.map(
        lambda number: _block(key, number, dim, projection), jnp.arange(-(-size // _ROWS))
    )


def attribute(
    model: Model,
    checkpoints: Sequence[tuple[Tree, Tree]],
    train: tuple[Any, Any],
    targets: tuple[Any, Any],
    key: Key,
    *,
    l2: float,
    dim: int = 2048,
    output: Output = margin,
    projection: Projection = "rademacher",
    hessian: bool = True,
    chunk: int | None = None,
    stores: Callable[[str], BlockStore] | None = None,
) -> np.ndarray:
    """TRAK over several trained models: scores and weights are averaged apart, as published.

    Args:
        model: the network.
        checkpoints: `(params, stats)` of independently trained models, at least one.
        train: inputs [n, ...] and labels [n] of the training points.
        targets: inputs [m, ...] and labels [m].
        key: the projections' key; every checkpoint folds its number into it.
        l2: added to the kernel's diagonal, in units of its mean entry there.
        dim: see `features`, as all that follow.
        output: the targets' output; that of the training points is always the margin.
        projection: distribution.
        hessian: whether the kernel is Phi' R Phi, R = p_y (1 - p_y), instead of TRAK's Phi' Phi.
        chunk: examples at once.
        stores: `stores(name)` gives a store for the features of a checkpoint, to resume from.

    Returns:
        float64 [n, m, T], T outputs per target: the effect of each training point.
    """
    margins, total = _train_margins(model, checkpoints, train), 0.0
    settings = dict(dim=dim, projection=projection, chunk=chunk)
    for featurise, kernel, root in _kernels(
        model, checkpoints, train, margins, key, hessian, stores, settings
    ):
        phi = featurise("targets", *targets, output=output)
        of_pairs = scores(kernel, phi.reshape(-1, dim), weights=1 / root, l2=l2 * _scale(kernel))
        total = total + of_pairs.reshape(len(kernel), *phi.shape[:2])
    return _right(-margins).mean(0)[:, None, None] * total / len(checkpoints)


def effect(
    model: Model,
    checkpoints: Sequence[tuple[Tree, Tree]],
    train: tuple[Any, Any],
    targets: tuple[Any, Any],
    forget: np.ndarray,
    key: Key,
    *,
    l2: float,
    dim: int = 2048,
    output: Output = all_logits,
    projection: Projection = "rademacher",
    hessian: bool = True,
    chunk: int | None = None,
    stores: Callable[[str], BlockStore] | None = None,
    callback: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`attribute(...)[forget].sum(0)`, without the scores of all points on all targets.

    Arguments are those of `attribute`, and `forget`, indices of training points, int [f].
    `callback` is called with the number of checkpoints that are done.

    Returns:
        float64 [m, T]: what training on the points adds to every output of every target.

    Raises:
        ValueError: as `attribute`, or an index out of range or given twice.
    """
    forget = subsets.check_points(forget, len(train[1]))
    margins, total = _train_margins(model, checkpoints, train), 0.0
    weights = np.zeros(len(train[1]))
    weights[forget] = _right(-margins).mean(0)[forget]
    settings = dict(dim=dim, projection=projection, chunk=chunk)
    for number, (featurise, kernel, root) in enumerate(
        _kernels(model, checkpoints, train, margins, key, hessian, stores, settings)
    ):
        factor, dual = _factorise(kernel, l2 * _scale(kernel))
        scaled = weights / root
        solved = scipy.linalg.cho_solve(factor, scaled if dual else kernel.T @ scaled)
        direction = kernel.T @ solved if dual else solved
        total = total + featurise("targets", *targets, output=output) @ direction
        if callback is not None:
            callback(number + 1)
    return np.asarray(total) / len(checkpoints)


def _kernels(
    model: Model,
    checkpoints: Sequence[tuple[Tree, Tree]],
    train: tuple[Any, Any],
    margins: np.ndarray,
    key: Key,
    hessian: bool,
    stores: Callable[[str], BlockStore] | None,
    settings: dict[str, Any],
) -> Iterator[tuple[Callable[..., np.ndarray], np.ndarray, np.ndarray]]:
    """For each checkpoint, its `features` by name, and the training points' rows of its kernel.

    Rows are sqrt(R) Phi, float64 [n, p], and sqrt(R) [n] is what to divide out of them again: R is
    p_y (1 - p_y), not below 1e-6, where points are fitted exactly, and 1 without the Hessian.
    """
    for number, trained in enumerate(checkpoints):
        store_of = (lambda name, i=number: stores(f"{i:03d}-{name}")) if stores else None
        featurise = _featuriser(model, trained, fold(key, number), store_of, settings)
        right = _right(margins[number])
        root = np.sqrt(np.maximum(right * (1 - right), 1e-6)) if hessian else np.ones(len(right))
        phi = featurise("train", *train)[:, 0]
        yield featurise, root[:, None] * phi, root


def _featuriser(model: Model, trained: tuple[Tree, Tree], key: Key, store_of, settings):
    """`features` of one checkpoint by name of what is featurised, the projection drawn once."""
    drawn = _drawn_once(trained[0], key, settings["dim"], settings["projection"])

    def featurise(name: str, x, y, **output) -> np.ndarray:
        store = store_of(name) if store_of else None
        return features(model, *trained, x, y, key, store=store, drawn=drawn, **settings, **output)

    return featurise


def _scale(phi: np.ndarray) -> float:
    """The mean diagonal entry of Phi' Phi."""
    return np.square(phi).sum() / phi.shape[1]


def _train_margins(model: Model, checkpoints, train) -> np.ndarray:
    """Margins of the training points under each checkpoint, float64 [C, n]."""
    if not checkpoints:
        raise ValueError("checkpoints is empty; at least one trained model is needed")
    x, y = (jnp.asarray(a) for a in train)
    return np.array(
        [losses.margins(_predict(model, params, stats, x), y) for params, stats in checkpoints],
        np.float64,
    )


def _right(margins: np.ndarray) -> np.ndarray:
    """The probability of the label, p_y; of -margins 1 - p_y, d cross-entropy / d margin."""
    return scipy.special.expit(margins)
