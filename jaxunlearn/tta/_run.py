"""One method over one array of images: `tta.run`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import checks, tree
from jaxunlearn.core.keys import Key
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import adaptation
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import Deployment, Network, Samples


class Adapted(NamedTuple):
    """What `run` returns.

    Attributes:
        logits: what predictions are taken from, [N, K].
        predictions: their largest entries, int [N].
        params: all parameters of the adapted student.
    """

    logits: jax.Array
    predictions: jax.Array
    params: Tree


def run(
    method: Method,
    model: Model,
    params: Tree,
    stats: Tree,
    images: Any,
    *,
    batch_size: int,
    key: Key,
    source: tuple[Any, Any] | None = None,
    compute: str = "float32",
) -> Adapted:
    """Adapts a network to images in their order; each is predicted once, as its batch arrives.

    Labels play no part. A last batch that is not full is padded, and the padding changes nothing.

    Args:
        method: one of `tta.METHODS`, with its settings.
        model: images [B, H, W, C] to logits [B, K].
        params: its parameters; they stay valid.
        stats: its running statistics.
        images: float [N, H, W, C] in [0, 1].
        batch_size: images of a batch; the last one may have fewer.
        key: a typed key.
        source: images and labels that the network was trained on, for methods that use them.
        compute: type of the network's computation.

    Raises:
        ValueError: arguments that do not fit, before anything is compiled.
    """
    images = check_images("images", images)
    deployment = deploy(model, params, stats, images.shape[1:], batch_size, source, compute)
    tables = batches(np.arange(len(images)), batch_size)
    state, shared = adaptation.begin(method, deployment, key)
    data = adaptation.data(method, deployment, images, tables)
    state, logits = adaptation.advance(
        state,
        shared,
        data,
        key,
        0,
        method=method,
        network=deployment.network,
        n_steps=len(tables["rows"]),
    )
    logits = logits.reshape(-1, logits.shape[-1])[: len(images)]
    return Adapted(logits, jnp.argmax(logits, -1), adaptation.adapted(state, shared))


def batches(rows: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """The tables of a feed for rows in their order, see `feed.Feed`."""
    n_missing = -len(rows) % batch_size
    padded = np.pad(rows, (0, n_missing)).reshape(-1, batch_size).astype(np.int32)
    if not n_missing:
        return {"rows": padded}
    counts = np.arange(padded.size) < len(rows)
    return {"rows": padded, "valid": counts.reshape(padded.shape)}


def deploy(
    model: Model,
    params: Tree,
    stats: Tree,
    image: tuple[int, ...],
    batch_size: int,
    source: tuple[Any, Any] | None = None,
    compute: str = "float32",
) -> Deployment:
    """The deployment of a network, checked without compiling anything.

    Raises:
        ValueError: parameters that are not the network's, images or a source that do not fit it,
            or a batch of one.
    """
    checks.one_of("compute", compute, ("float32", "bfloat16", "float16"))
    if checks.whole("batch_size", batch_size) == 1 and jax.tree.leaves(stats):
        raise ValueError(
            "batch_size is 1, of which no statistics can be taken; adapt on a window of the last "
            "images instead (`streams.windows`, --window)"
        )
    example = jax.ShapeDtypeStruct((batch_size, *image), jnp.float32)
    try:
        like = jax.eval_shape(lambda: model.init(jax.random.key(0)))
        _check_same(like, (params, stats))
        out, _ = jax.eval_shape(lambda p, s, x: model.apply(p, s, x), params, stats, example)
    except (TypeError, ValueError) as error:
        shape = " x ".join(map(str, image))
        raise ValueError(f"the network does not fit images of {shape}: {error}") from error
    samples = None
    if source is not None:
        x, y = check_images("source", source[0]), np.asarray(source[1])
        _check_source(x, y, image, out.shape[-1])
        samples = Samples(jnp.asarray(x), jnp.asarray(y))
    height, width, channels = image
    shape, n_classes = (height, width, channels), out.shape[-1]
    return Deployment(Network(model, compute), params, stats, batch_size, shape, n_classes, samples)


def _check_same(like: Tree, given: Tree) -> None:
    wanted, there = tree.named(like), tree.named(given)
    for name in sorted({**wanted, **there}):
        if name not in wanted or name not in there:
            raise ValueError(f"{name!r} is {'missing' if name in wanted else 'not a part of it'}")
        if wanted[name].shape != np.shape(there[name]):
            shapes = list(np.shape(there[name])), list(wanted[name].shape)
            raise ValueError(f"{name!r} is {shapes[0]}; {shapes[1]} is needed")


def check_images(name: str, images: Any) -> Any:
    """Images [N, H, W, C], uint8 or floats in [0, 1]."""
    shape = np.shape(images)
    if len(shape) != 4 or not shape[0]:
        raise ValueError(f"{name} has shape {list(shape)}; [N, H, W, C] with N >= 1 is needed")
    if images.dtype == np.uint8:
        return images
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {images.dtype}; floats in [0, 1] are needed")
    least, most = float(np.min(images)), float(np.max(images))
    if not (least >= 0 and most <= 1):
        raise ValueError(f"{name} lie in [{least:g}, {most:g}]; [0, 1] is needed")
    return images


def _check_source(x: Any, y: np.ndarray, image: tuple[int, ...], n_classes: int) -> None:
    if x.shape[1:] != tuple(image):
        raise ValueError(f"source has images of {list(x.shape[1:])}, the stream of {list(image)}")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"source has labels {y.dtype}{list(y.shape)}; integers [{len(x)}] are needed"
        )
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(
            f"source has labels from {y.min()} to {y.max()}; the network has {n_classes} classes"
        )
