"""Matrix products whose derivatives XLA computes badly on a CPU, with derivatives of their own.

The gradient of a kernel is a product over all rows, x^T g. Left to itself, XLA on a CPU may turn it
around, and transpose the wide matrix together with everything that computes it, once more for each
use (measured: a third of a training step with adapters, a sixth without). Elsewhere the products
are plain. On a CPU the derivatives are reverse-mode only.
"""

import jax
import jax.numpy as jnp


def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`: [..., n], [n, m] -> [..., m]."""
    return _dense(x, kernel) if jax.default_backend() == "cpu" else x @ kernel


def thin(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """`scale x a b`: [..., n], [n, r], [r, m], [] -> [..., m], in the type of `x a b`.

    The scale may be more precise than the rest; what is scaled is rounded once.
    """
    if jax.default_backend() == "cpu":
        return _thin(x, a, b, scale)
    return _scaled(x @ a, scale) @ b


def over_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    """left^T right, summed over all leading axes: [..., n], [..., m] -> [n, m].

    `left` is what is transposed; the barrier hides that from XLA.
    """
    transposed = jax.lax.optimization_barrier(left.reshape(-1, left.shape[-1]).T)
    return transposed @ right.reshape(-1, right.shape[-1])


@jax.custom_vjp
def _dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _dense_forward(x: jax.Array, kernel: jax.Array):
    return x @ kernel, (x, kernel)


def _dense_backward(kept: tuple, g: jax.Array):
    x, kernel = kept
    return g @ kernel.T, over_rows(x, g)  # what is not asked for, XLA does not compute


_dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def _thin(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    return _scaled(x @ a, scale) @ b


def _thin_forward(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array):
    inner = x @ a
    return _scaled(inner, scale) @ b, (x, a, b, scale, inner)


def _thin_backward(kept: tuple, g: jax.Array):
    x, a, b, scale, inner = kept
    d_inner = g @ b.T
    d_scale = jnp.sum(d_inner * inner).astype(scale.dtype)
    d_inner, scaled = _scaled(d_inner, scale), _scaled(inner, scale)
    return d_inner @ a.T, over_rows(d_inner, x).T, over_rows(scaled, g), d_scale


def _scaled(inner: jax.Array, scale: jax.Array) -> jax.Array:
    return (inner * scale).astype(inner.dtype)


_thin.defvjp(_thin_forward, _thin_backward)
