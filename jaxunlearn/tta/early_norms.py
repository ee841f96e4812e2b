"""The norms that SAR and DeYO train: all but those of the last layers."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.network import norm_affine

_LAST_BLOCKS = (9, 10, 11)  # the last ones of a ViT-B; a smaller one has none of them
_LAST_STAGE = 4


@dataclasses.dataclass(frozen=True)
class EarlyNorms(Method):
    """A method that trains scales and shifts of norms before the last layers.

    Those are, as in the published code, the fourth stage of a ResNet, and a transformer's blocks 9
    to 11 and its last norm.
    """

    def trainable(self, params: Tree) -> Tree:
        """Scales and shifts of normalisation layers, without the last ones."""
        leaves = tree.named(params)
        late = _last_stage(leaves)
        if any(_is_stacked(name, leaf) for name, leaf in leaves.items()):
            late.add("norm")
        chosen = [
            is_norm and not ("layer4" in name or any(name.startswith(f"{part}/") for part in late))
            for name, is_norm in tree.named(norm_affine(params)).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer, which leaves the last blocks of a stack as they are."""
        cut = optax.stateless(lambda updates, _: without_last_blocks(updates))
        return optax.chain(super().transformation(), cut)


def without_last_blocks(updates: Tree) -> Tree:
    """Updates or gradients of stacked layers [N, D] with zeros in the last blocks."""

    def cut(name: str, leaf: jax.Array) -> jax.Array:
        if not _is_stacked(name, leaf):
            return leaf
        is_last = jnp.isin(jnp.arange(leaf.shape[0]), jnp.array(_LAST_BLOCKS))
        return jnp.where(is_last[:, None], 0, leaf)

    leaves = [cut(name, leaf) for name, leaf in tree.named(updates).items()]
    return jax.tree.unflatten(jax.tree.structure(updates), leaves)


def _is_stacked(name: str, leaf: jax.Array) -> bool:
    """Whether a leaf holds what one norm of each layer scales or shifts by."""
    return name.startswith("layers/") and name.endswith(("/scale", "/bias")) and leaf.ndim == 2


def _last_stage(leaves: dict[str, jax.Array]) -> set[str]:
    """The blocks of a residual network's fourth stage; each stage has a width of its own."""
    ends = "/conv1/kernel"
    widths = {
        name.removesuffix(ends): leaf.shape[-1]
        for name, leaf in leaves.items()
        if name.startswith("blocks/") and name.endswith(ends)
    }
    late = list(dict.fromkeys(widths.values()))[_LAST_STAGE - 1 :]
    return {block for block, width in widths.items() if width in late}
