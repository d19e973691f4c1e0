"""Adaptive layer normalisation and its gradient by kernels compiled for this machine's processor.

Each is one pass over the tokens. The gradient computes the means and variances again, so only the
arguments are kept for it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from guidedflow.native import library
from guidedflow.native.matmul import alike, call_kernel, merged, reshaped
from guidedflow.nn.normalization import modulate, normalize

Tokens = Float[Array, "b n d"]
Modulations = Float[Array, "b d"]


def adaptive_normalize(
    x: Tokens, shift: Modulations, scale: Modulations, units: str, epsilon: float = 1e-6
) -> Tokens:
    """Normalise each token over its features and modulate it by its example's shift and scale.

    (x − mean)/√(variance + ε)·(1 + scale) + shift.   Peebles & Xie 2023, section 3.2.

    It is differentiable to every order, in forward and reverse mode; `vmap` makes a larger batch.  On a
    mesh it behaves like `matmul.multiply`.

    Args:
      x, shift, scale: float32.
      units: the units that compute it, a name of `library.UNITS`.
      epsilon: ε > 0.
    Raises:
      ValueError: other dtypes, or shapes that do not match.
      library.Unavailable: see `library.load`.
    """
    library.load(units)
    b, _, d = x.shape if x.ndim == 3 else (0, 0, 0)
    float32 = {v.dtype for v in (x, shift, scale)} == {jnp.dtype(jnp.float32)}
    if x.ndim != 3 or not shift.shape == scale.shape == (b, d) or not float32:
        shown = ", ".join(f"{v.dtype}{v.shape}" for v in (x, shift, scale))
        raise ValueError(f"no adaptive normalisation of {shown}")
    return _normalize.bind(*alike(x, shift, scale), units=units, epsilon=np.float32(epsilon))


# Three primitives: normalisation; its tangent, which is linear in the tangents of x, shift and scale; and
# its gradient, the transpose of the tangent.  The last two are transposes of each other.  There is no
# kernel for the tangent nor for second derivatives; they are computed from `_unfused`.  No derivative
# depends on the shift, so scale is passed in its place.
_normalize = Primitive("guidedflow_normalize")
_tangent = Primitive("guidedflow_normalize_tangent")
_gradient = Primitive("guidedflow_normalize_gradient")
_gradient.multiple_results = True


def _unfused(x: Tokens, shift: Modulations, scale: Modulations, epsilon: float) -> Tokens:
    return modulate(normalize(x, epsilon), shift, scale)


def _tangent_unfused(
    x: Tokens, scale: Modulations, *tangents: Array, units: str, epsilon: float
) -> Tokens:
    function = partial(_unfused, epsilon=epsilon)
    return jax.jvp(function, (x, scale, scale), tangents)[1]


def _gradient_unfused(
    x: Tokens, scale: Modulations, cotangent: Tokens, *, units: str, epsilon: float
) -> list[Array]:
    function = partial(_unfused, epsilon=epsilon)
    return list(jax.vjp(function, x, scale, scale)[1](cotangent))


def _normalize_result(x: Any, *_: Any, **params: Any) -> Any:
    return reshaped(x, x.shape)


def _gradient_result(x: Any, scale: Any, _: Any, **params: Any) -> list[Any]:
    return [reshaped(v, v.shape) for v in (x, scale, scale)]


def _normalize_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Array]:
    x, _, scale = primals
    operands = alike(x, scale, *map(ad.instantiate_zeros, tangents))
    return _normalize.bind(*primals, **params), _tangent.bind(*operands, **params)


def _unfused_jvp(function: Any, primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    tangents = tuple(alike(*map(ad.instantiate_zeros, tangents)))
    return jax.jvp(partial(function, **params), primals, tangents)


def _tangent_transposed(
    ct: Any, x: Array, scale: Array, *tangents: Any, **params: Any
) -> list[Array | None]:
    if type(ct) is ad.Zero:
        return [None] * 5
    return [None, None, *_gradient.bind(*alike(x, scale, ct), **params)]


def _gradient_transposed(
    cts: Any, x: Array, scale: Array, _: Any, **params: Any
) -> list[Array | None]:
    operands = alike(x, scale, *map(ad.instantiate_zeros, cts))
    return [None, None, _tangent.bind(*operands, **params)]


def _define(primitive: Primitive, result: Any, compute: Any, platform: str | None = None) -> None:
    primitive.def_abstract_eval(result)
    primitive.def_impl(jax.jit(compute, static_argnames=("units", "epsilon")))
    lowering = mlir.lower_fun(compute, multiple_results=primitive.multiple_results)
    mlir.register_lowering(primitive, lowering, platform=platform)
    batching.primitive_batchers[primitive] = partial(merged, primitive)


_define(
    _normalize, _normalize_result, partial(call_kernel, library.NORMALIZE, _normalize_result), "cpu"
)
_define(_tangent, _normalize_result, _tangent_unfused)
_define(
    _gradient,
    _gradient_result,
    partial(call_kernel, library.NORMALIZE_GRADIENT, _gradient_result),
    "cpu",
)
ad.primitive_jvps[_normalize] = _normalize_jvp
ad.primitive_jvps[_tangent] = partial(_unfused_jvp, _tangent_unfused)
ad.primitive_jvps[_gradient] = partial(_unfused_jvp, _gradient_unfused)
ad.primitive_transposes[_tangent] = _tangent_transposed
ad.primitive_transposes[_gradient] = _gradient_transposed
