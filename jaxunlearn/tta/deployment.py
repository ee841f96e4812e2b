"""A trained network and what is known when it is deployed, checked without compiling anything."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import checks, tree
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta.network import Network


class Samples(NamedTuple):
    """Labelled images of the source domain: x [n, H, W, C] in [0, 1] (or uint8), y int [n]."""

    x: Any
    y: Any


class Deployment(NamedTuple):
    """A trained network and what is known when it is deployed.

    Attributes:
        network: the network.
        params: its trained parameters.
        stats: its running statistics.
        batch_size: images of a batch.
        image: shape of an image (H, W, C).
        n_classes: number of classes.
        source: images that it was trained on, for methods that ask for them.
    """

    network: Network
    params: Tree
    stats: Tree
    batch_size: int
    image: tuple[int, int, int]
    n_classes: int
    source: Samples | None = None


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


def n_features(deployment: Deployment) -> int:
    """How many features the network gives.

    Raises:
        ValueError: it gives none.
    """
    example = jax.ShapeDtypeStruct((deployment.batch_size, *deployment.image), jnp.float32)
    try:
        network, params, stats = deployment.network, deployment.params, deployment.stats
        _, features = jax.eval_shape(network.features, params, stats, example)
    except TypeError as error:
        raise ValueError(
            "the network does not give its features, which this method reads: a switch "
            f"`return_features`, for (logits, features), is needed ({error})"
        ) from error
    return features.shape[-1]
