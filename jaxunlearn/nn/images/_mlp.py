"""Multi-layer perceptrons."""

import functools

import jax
from flax import nnx

from jaxunlearn.core.model import Model, from_nnx


class MLP(nnx.Module):
    """Flatten, then ReLU layers, then a linear one."""

    def __init__(self, n_inputs: int, hidden: tuple[int, ...], n_classes: int, rngs: nnx.Rngs):
        widths = (n_inputs, *hidden, n_classes)
        self.dense = nnx.List(
            nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        return self.dense[-1](x)


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def mlp(n_inputs: int, hidden: tuple[int, ...] = (64,), n_classes: int = 10) -> Model:
    """A multi-layer perceptron with ReLU.

    Args:
        n_inputs: size of one flattened input.
        hidden: widths of the hidden layers.
        n_classes: number of outputs.

    Returns:
        A model from inputs [B, ...] to logits [B, n_classes]; parameters `dense/000/kernel`, ...
    """
    return from_nnx(lambda rngs: MLP(n_inputs, hidden, n_classes, rngs))
