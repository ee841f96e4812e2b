"""The cost of a network in multiply-adds."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxunlearn.core.model import Model
from jaxunlearn.nn.layers.lowering import plain_convolutions


def multiply_adds(model: Model, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass in eval mode for one input; nothing is computed.

    Convolutions and matrix products count, wherever they are in the program; element-wise work
    does not. Products with the zeros of a padding count, as usual, and so a convolution costs the
    same however it is lowered. Of a condition the dearest branch counts.

    Args:
        model: takes one float32 input [1, *input_shape].
        input_shape: without the batch axis.

    Raises:
        ValueError: a loop of unknown length holds a product.
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    with plain_convolutions():  # our own need fewer
        return _count(jax.make_jaxpr(model.apply)(params, stats, x).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        n_out = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // n_out
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)
    inner = [_count(jaxpr) for jaxpr in _inner(equation)]
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("the model has a `while` loop with products: its length is not known")
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs inside an equation: called functions, bodies of loops, branches."""
    for value in jax.tree.leaves(list(equation.params.values())):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
