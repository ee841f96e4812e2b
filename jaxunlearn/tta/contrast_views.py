"""AdaContrast's three views of an image: one weak, two strong (MoCo v2, without crops)."""

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.tta import _augment

RADIUS = 6  # of the strong views' blur, three times its largest deviation


def weak_and_strong(key: Key, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Views [B, H, W, C] for pseudo-labels, as query and as key; each image draws on its own.

    - weak: mirrored with probability 1/2 (its published crop is as large as the image).
    - strong: with probability 0.8 brightness, contrast and saturation of 0.6 to 1.4 and a hue of
      -0.1 to 0.1 in random order; grey with 0.2; with 0.5 a Gaussian blur of 0.1 to 2 pixels;
      mirrored with 1/2.

    The published loader works on images of 8 bits; this one on floats, without their rounding.
    """

    def views(i: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = fold(key, i)
        return (
            _mirrored(fold(own, "weak"), image),
            strong(fold(own, "query"), image),
            strong(fold(own, "key"), image),
        )

    return jax.vmap(views)(jnp.arange(len(images)), images)


def strong(key: Key, image: jax.Array) -> jax.Array:
    """A strong view of an image [H, W, C]."""
    planes = image[..., None]
    sometimes = lambda name, p, new, old: jnp.where(  # noqa: E731
        jax.random.bernoulli(fold(key, name), p), new, old
    )
    planes = sometimes("jitter", 0.8, _jittered(fold(key, "factors"), planes), planes)
    planes = sometimes("grey", 0.2, jnp.broadcast_to(_augment.grey(planes), planes.shape), planes)
    padded = jnp.pad(planes, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0), (0, 0)), mode="edge")
    sigma = jax.random.uniform(fold(key, "sigma"), minval=0.1, maxval=2)
    planes = sometimes("blur", 0.5, _augment.blur(padded, sigma, RADIUS), planes)
    return _mirrored(fold(key, "mirror"), planes[..., 0])


def _jittered(key: Key, planes: jax.Array) -> jax.Array:
    def factor(name: str, most: float) -> jax.Array:
        return jax.random.uniform(fold(key, name), minval=-most, maxval=most)

    factors = _augment.Factors(
        brightness=1 + factor("brightness", 0.4),
        contrast=1 + factor("contrast", 0.4),
        saturation=1 + factor("saturation", 0.4),
        hue=factor("hue", 0.1),
        order=jax.random.permutation(fold(key, "order"), 5),
    )
    return _augment.coloured(planes, factors)


def _mirrored(key: Key, image: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)
