"""DeYO: entropy of samples whose answer hangs on their shape (Lee et al. 2024, ICLR)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key
from jaxunlearn.core.step import Step
from jaxunlearn.core.tree import combine
from jaxunlearn.tta import filters, losses, masked
from jaxunlearn.tta.early_norms import EarlyNorms
from jaxunlearn.tta.method import counted, descend
from jaxunlearn.tta.network import Network


@dataclasses.dataclass(frozen=True)
class DeYO(EarlyNorms):
    """Sure samples count whose answer becomes less likely when their shape is destroyed.

    It trains scales and shifts of norms before the last layers, see `EarlyNorms`.

    Attributes:
        margin: a sample is sure if its entropy is below so many times ln K.
        margin_e0: so many times ln K is the entropy with weight 1.
        plpd: least drop of the answer's probability (pseudo-label probability difference).
        aug_type: how shape is destroyed: "patch" shuffles patches, "pixel" all pixels, "occ" writes
            each image's channel means into a window.
        patch_len: patches along each side.
        occlusion_size: side of that window.
        row_start: its first row.
        column_start: its first column.
    """

    margin: float = 0.5
    margin_e0: float = 0.4
    plpd: float = 0.2
    aug_type: Literal["occ", "patch", "pixel"] = "patch"
    patch_len: int = 4
    occlusion_size: int = 112
    row_start: int = 56
    column_start: int = 56

    def __post_init__(self):
        super().__post_init__()
        for name in ("margin", "margin_e0"):
            checks.at_least(name, getattr(self, name), 0)
        checks.at_least("plpd", self.plpd, -1)
        checks.one_of("aug_type", self.aug_type, ("occ", "patch", "pixel"))
        checks.whole("patch_len", self.patch_len)
        for name in ("occlusion_size", "row_start", "column_start"):
            checks.whole(name, getattr(self, name), 0)

    def step(self, network: Network) -> Step:
        """One step; where nothing is kept, nothing moves."""
        rule = self.transformation()

        def loss_of(params, state, shared, batch, key):
            full = combine(params, shared["frozen"])
            valid, x = masked.valid(batch), batch["x"]
            logits = network.logits(full, state.stats, x, kept=valid)
            sure = masked.both(filters.sure(logits, self.margin), valid)
            without_shape = self._destroyed(key, x)
            others = network.logits(full, state.stats, without_shape, kept=sure)
            drop = jax.lax.stop_gradient(_drop(logits, others))
            kept = masked.everywhere(sure, len(x)) & (drop > self.plpd)
            entropy = losses.entropy(logits)
            most = filters.most_entropy(self.margin_e0, logits.shape[-1])
            weight = jnp.exp(most - jax.lax.stop_gradient(entropy)) + jnp.exp(drop)
            return masked.mean(weight * entropy, kept), (logits, kept)

        def step(state, shared, batch, key):
            grads, (logits, kept) = jax.grad(loss_of, has_aux=True)(
                state.params, state, shared, batch, key
            )
            moved = descend(rule, grads, state)
            new = masked.where(kept.any(), moved, counted(state))
            return new, {"logits": logits}

        return step

    def _destroyed(self, key: Key, x: jax.Array) -> jax.Array:
        if self.aug_type == "occ":
            return self._occluded(x)
        if self.aug_type == "patch":
            return shuffled_patches(key, x, self.patch_len)
        n, height, width, channels = x.shape
        order = jax.random.permutation(key, height * width)  # the same for all images
        return x.reshape(n, -1, channels)[:, order].reshape(x.shape)

    def _occluded(self, x: jax.Array) -> jax.Array:
        _, height, width, _ = x.shape
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (rows >= self.row_start) & (rows < self.row_start + self.occlusion_size)
        inside &= columns >= self.column_start
        inside &= columns < self.column_start + self.occlusion_size
        return jnp.where(inside[..., None], x.mean((1, 2), keepdims=True), x)


def _drop(logits: jax.Array, others: jax.Array) -> jax.Array:
    """How much less likely the answer is without the shape, [B]."""
    p, q = jax.nn.softmax(logits), jax.nn.softmax(others)
    answer = logits.argmax(-1)[:, None]
    return jnp.take_along_axis(p - q, answer, axis=1)[:, 0]


def shuffled_patches(key: Key, x: jax.Array, n: int) -> jax.Array:
    """Each image in n x n patches in a random order of its own.

    Sides that n does not divide are scaled down for it, and back.
    """
    batch, height, width, channels = x.shape
    size = (max(height // n, 1) * n, max(width // n, 1) * n)
    shape = (batch, *size, channels)
    scaled = x if size == (height, width) else jax.image.resize(x, shape, "linear")
    h, w = size[0] // n, size[1] // n
    patches = scaled.reshape(batch, n, h, n, w, channels).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(batch, n * n, h, w, channels)
    order = jnp.argsort(jax.random.uniform(key, (batch, n * n)), axis=1)
    patches = jnp.take_along_axis(patches, order[:, :, None, None, None], axis=1)
    patches = patches.reshape(batch, n, n, h, w, channels).transpose(0, 1, 3, 2, 4, 5)
    out = patches.reshape(shape)
    return out if size == (height, width) else jax.image.resize(out, x.shape, "linear")
