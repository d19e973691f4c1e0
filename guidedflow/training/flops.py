"""Floating-point operations of a function, counted from its jaxpr.

XLA's own count takes the body of a loop only once. For a stack scanned over its layers, or a step with
gradient accumulation, it would be only a fraction of the work.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def counted(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the operations of the matmuls and convolutions in one call, 2 per multiply-add.

    Activations and normalisation are left out, as usual. The body of a scan counts once per iteration,
    a `cond` counts its more expensive branch, and the body of a while loop counts once, because the
    number of iterations is not known.

    Args:
      function: a pure, traceable function.
      arguments: arrays or `jax.ShapeDtypeStruct`.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(v.aval, "shape", ()) for v in equation.invars]
    made: Any = getattr(equation.outvars[0].aval, "shape", ()) if equation.outvars else ()
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(shapes[0][axis] for axis in contracted)
        return 2.0 * summed * math.prod(made)
    if name.startswith(("guidedflow_product", "guidedflow_affine")):
        across = params.get("transpose_x") or name == "guidedflow_affine_gradient"
        return 2.0 * shapes[0][-2 if across else -1] * math.prod(made)
    if name.startswith("guidedflow_attention"):
        examples, tokens, features = shapes[0]
        # Attention is two matmuls. Its gradient is five, because it computes one of them again.
        products = 5 if name == "guidedflow_attention_gradient" else 2
        return products * 2.0 * examples * tokens**2 * features / 3
    if name == "conv_general_dilated":
        kernel = shapes[1]
        each = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        # The zeros between the values of a dilated input are not counted.
        each /= math.prod(params["lhs_dilation"])
        return 2.0 * each * math.prod(made)
    inner = [_of(jaxpr) for jaxpr in _inside(params.values())]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inside(values: Any) -> Iterator[Jaxpr]:
    """Yield the jaxprs among an equation's parameters."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inside(value)
