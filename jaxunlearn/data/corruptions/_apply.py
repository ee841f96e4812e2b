"""One corruption of a batch: what is checked first, the constants, the compiled program."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxunlearn.core.keys import Key
from jaxunlearn.data.corruptions import (
    _blur,
    _constants,
    _digital,
    _frost_photos,
    _jpeg,
    _noise,
    _spatter,
    _weather,
)
from jaxunlearn.data.corruptions._planes import checked_images, levels

# name: what is done to images in levels, and what that needs of the constants
_CORRUPTIONS: dict[str, tuple[Callable[..., jax.Array], Callable[..., dict]]] = {
    "gaussian_noise": (_noise.gaussian_noise, _noise.deviation),
    "shot_noise": (_noise.shot_noise, _noise.counts),
    "impulse_noise": (_noise.impulse_noise, _noise.share),
    "defocus_blur": (_blur.defocus_blur, _blur.disk),
    "glass_blur": (_blur.glass_blur, _blur.glass),
    "motion_blur": (_blur.motion_blur, _blur.motion),
    "zoom_blur": (_blur.zoom_blur, _blur.zooms),
    "snow": (_weather.snow, _weather.flakes),
    "frost": (_weather.frost, _weather.shares),
    "fog": (_weather.fog, _weather.cloud),
    "brightness": (_digital.brightness, _digital.added),
    "contrast": (_digital.contrast, _digital.kept),
    "elastic_transform": (_digital.elastic_transform, _digital.displacement),
    "pixelate": (_digital.pixelate, _digital.boxes),
    "jpeg_compression": (_jpeg.jpeg_compression, _jpeg.tables),
    "speckle_noise": (_noise.speckle_noise, _noise.deviation),
    "gaussian_blur": (_blur.gaussian_blur, _blur.gaussian_filter),
    "saturate": (_digital.saturate, _digital.saturation),
}
_BLOCK = 2**18  # values that a device corrupts at once: a CPU's cache holds them


def apply(
    name: str,
    images: Any,
    severity: float,
    key: Key,
    family: str = "cifar",
    *,
    frost_folder: str | os.PathLike | None = None,
) -> jax.Array:
    """Corrupts images as CIFAR-10-C or ImageNet-C are, in one compiled program on the device.

    Another severity is no other program: constants, filters and counts are its arguments.

    Args:
        name: one of `NAMES`.
        images: uint8 [N, H, H, 3].
        severity: 1 to 5; between two whole severities their constants are interpolated linearly.
            What must be whole (distances and rounds of glass, JPEG's quality) is rounded then.
        key: one key, from which image i draws with `jax.random.fold_in(key, i)`; or [N] keys, one
            for each image, whatever the batch.
        family: constants of "cifar" (made for 32x32 images) or "imagenet" (224x224).
        frost_folder: PNG or JPEG photos of ice, of which `frost` takes crops; they are read at a
            fifth of their size for "cifar", as published. None: a procedural texture, of about the
            photos' colours, contrast and roughness. The other corruptions do not read it.

    Returns:
        uint8 [N, H, H, 3], fractions of levels cut off as in the published sets. The same key gives
        the same bits.

    Raises:
        ValueError: an unknown corruption, severity or family, images of another type or shape,
            keys that are not one a batch or one an image, photos that cannot be read or are smaller
            than the images, or `spatter`, which is made on the host, in a traced function. Nothing
            has been compiled then.
    """
    c = _constants.constants(name, family, severity)
    images = checked_images(images)
    keys = _keys(key, len(images))
    if name == "spatter":
        return _spatter.spatter(images, c, keys)
    made = _made(name, family, float(severity), images.shape[1])
    if name == "frost" and frost_folder is not None:
        made = made | _frost_photos.read(frost_folder, family, images.shape[1])
    if isinstance(images, Tracer):
        return _corrupted(name, images, made, keys)
    return _in_blocks(functools.partial(_corrupted, name, made=made), images, keys)


def _in_blocks(corrupted: Callable[..., jax.Array], images: Any, keys: Key) -> jax.Array:
    """Blocks of equal size, one after the other; the devices of a CPU share the images of each."""
    shared = jax.local_devices() if isinstance(images, np.ndarray) else []
    shared = shared if jax.default_backend() == "cpu" and len(images) >= len(shared) > 1 else [None]
    mesh = None if shared == [None] else Mesh(np.array(shared), "data", (AxisType.Auto,))
    each = max(_BLOCK // math.prod(images.shape[1:]), 1)
    block = len(shared) * min(each, -(-len(images) // len(shared)))
    parts = []
    for first in range(0, len(images), block):  # the last one is filled up: no other program
        at = np.minimum(np.arange(first, first + block), len(images) - 1)
        parts.append(corrupted(images[at], keys=keys[at], mesh=mesh))
    if mesh is None:
        return jnp.concatenate(parts)[: len(images)] if len(parts) > 1 else parts[0]
    return jnp.asarray(np.concatenate(jax.device_get(parts))[: len(images)])


@functools.partial(jax.jit, static_argnums=0, static_argnames="mesh")
def _corrupted(
    name: str, images: jax.Array, made: dict, keys: Key, mesh: Mesh | None = None
) -> jax.Array:
    def corrupted(images: jax.Array, made: dict, keys: Key) -> jax.Array:
        corrupt, _ = _CORRUPTIONS[name]
        return levels(corrupt(images.astype(jnp.float32), made, keys)).astype(jnp.uint8)

    if mesh is None:
        return corrupted(images, made, keys)
    specs = PartitionSpec("data"), PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(corrupted, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(
        images, made, keys
    )


@functools.lru_cache(maxsize=64)
def _made(name: str, family: str, severity: float, size: int) -> dict:
    most = _constants.table(name, family).max(axis=0)
    made = _CORRUPTIONS[name][1](_constants.constants(name, family, severity), most, size)
    return {
        part: np.asarray(value, np.int32 if np.asarray(value).dtype.kind == "i" else np.float32)
        for part, value in made.items()
    }


def _keys(key: Key, n: int) -> Key:
    """One key for every image, [n]."""
    if not isinstance(key, jax.Array):
        raise ValueError(f"key is {key!r}; a key of JAX is needed, jax.random.key(seed)")
    if key.dtype == jnp.uint32:  # as `jax.random.PRNGKey` makes them
        key = jax.random.wrap_key_data(key)
    if key.shape not in ((), (n,)):
        raise ValueError(f"key has shape {list(key.shape)}; one key, or [{n}] keys, are needed")
    if key.ndim:
        return key
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(n))
