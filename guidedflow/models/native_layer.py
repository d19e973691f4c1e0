"""A layer and its gradient by kernels compiled for this machine's processor, as primitives of JAX.

What is done beside a product is done while its part of it is in cache: GELU of the layer's argument,
which is never written to memory; the bias; and the sums of the cotangent, the bias's gradient.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from guidedflow.models import native
from guidedflow.models.native_product import alike, call_kernel, multiply, reshaped


def affine(
    x: Float[Array, "m k"],
    kernel: Float[Array, "k n"],
    bias: Float[Array, " n"],
    units: str,
    gelu: bool = False,
) -> Float[Array, "m n"]:
    """Return x·kernel + bias, or with GELU of x for x.

    The hyperbolic-tangent form of GELU, Hendrycks & Gimpel 2016, section 2.  Differentiable to every
    order, forwards and backwards; `vmap` folds an axis of `x` alone.  Under a mesh as `multiply` is.

    Args:
      x, kernel, bias: float32.
      units: what computes, a name of `native.UNITS`.
      gelu: whether x passes through GELU first.
    Raises:
      ValueError: other dtypes or ranks, or shapes that do not go together.
      native.Unavailable: see `native.load`.
    """
    native.load(units)
    _layer_result(*map(jax.typeof, (x, kernel, bias)))
    if not x.size or not kernel.size:
        return _layer_unfused(x, kernel, bias, units=units, gelu=gelu)
    return _layer.bind(*alike(x, kernel, bias), units=units, gelu=gelu)


# A derivative computes element by element what lies between two products again, from what the first
# one gave: on CPU that is faster than keeping the parts.
recomputed_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))


# Two primitives: the layer, and the gradient of its kernel and bias.  The layer is linear in these two
# and the gradient is its transpose; the gradient is linear in the cotangent and the layer is its.
_layer = Primitive("guidedflow_affine")
_gradient = Primitive("guidedflow_affine_gradient")
_gradient.multiple_results = True


# ---- what they are ----


def _layer_unfused(x: Array, kernel: Array, bias: Array, *, units: str, gelu: bool) -> Array:
    return multiply(recomputed_gelu(x) if gelu else x, kernel, units) + bias[None]


def _gradient_unfused(x: Array, cotangent: Array, *, units: str, gelu: bool) -> list[Array]:
    x = recomputed_gelu(x) if gelu else x
    return [multiply(x, cotangent, units, transpose_x=True), cotangent.sum(0)]


def _layer_result(x: Any, kernel: Any, bias: Any, **_: Any) -> Any:
    fits = x.ndim == kernel.ndim == 2 and x.shape[1] == kernel.shape[0]
    fits = fits and bias.shape == kernel.shape[1:]
    if not fits or {x.dtype, kernel.dtype, bias.dtype} != {jnp.dtype(jnp.float32)}:
        shown = ", ".join(f"{v.dtype}{v.shape}" for v in (x, kernel, bias))
        raise ValueError(f"no layer of {shown}")
    return reshaped(x, (x.shape[0], kernel.shape[1]))


def _gradient_result(x: Any, cotangent: Any, **_: Any) -> list[Any]:
    n = cotangent.shape[1]
    return [reshaped(x, (x.shape[1], n)), reshaped(x, (n,))]


# ---- their derivatives ----


def _activated(x: Array, dx: Any, gelu: bool) -> tuple[Array, Any]:
    """Return what is multiplied, x or GELU of it, and its tangent."""
    if not gelu:
        return x, dx
    if type(dx) is ad.Zero:
        return recomputed_gelu(x), dx
    return jax.jvp(recomputed_gelu, (x,), (dx,))


def _layer_jvp(primals: Any, tangents: Any, *, units: str, gelu: bool) -> tuple[Array, Array]:
    (x, kernel, _), (dx, dkernel, dbias) = primals, tangents
    y = _layer.bind(*primals, units=units, gelu=gelu)
    activated, slope = _activated(x, dx, gelu)
    parts = []
    if type(slope) is not ad.Zero:
        parts.append(multiply(slope, kernel, units))
    if ad.Zero not in (type(dkernel), type(dbias)):
        parts.append(_layer.bind(x, dkernel, dbias, units=units, gelu=gelu))
    elif type(dkernel) is not ad.Zero:
        parts.append(multiply(activated, dkernel, units))
    elif type(dbias) is not ad.Zero:
        parts.append(jnp.broadcast_to(dbias[None], y.shape))
    return y, sum(parts[1:], parts[0])


def _gradient_jvp(
    primals: Any, tangents: Any, *, units: str, gelu: bool
) -> tuple[list[Array], list[Array]]:
    (x, cotangent), (dx, dcotangent) = primals, tangents
    made = _gradient.bind(x, cotangent, units=units, gelu=gelu)
    _, slope = _activated(x, dx, gelu)
    if type(dcotangent) is ad.Zero:
        return made, [multiply(slope, cotangent, units, transpose_x=True), jnp.zeros_like(made[1])]
    of_kernel, of_bias = _gradient.bind(x, dcotangent, units=units, gelu=gelu)
    if type(slope) is not ad.Zero:
        of_kernel += multiply(slope, cotangent, units, transpose_x=True)
    return made, [of_kernel, of_bias]


def _layer_transposed(
    ct: Any, x: Array, kernel: Any, bias: Any, *, units: str, gelu: bool
) -> list[Any]:
    if type(ct) is ad.Zero:
        return [None, None, None]
    return [None, *_gradient.bind(x, ct, units=units, gelu=gelu)]


def _gradient_transposed(cts: Any, x: Array, _: Any, *, units: str, gelu: bool) -> list[Any]:
    kernel, bias = map(ad.instantiate_zeros, cts)
    return [None, _layer.bind(x, kernel, bias, units=units, gelu=gelu)]


# ---- under vmap ----


def _layer_mapped(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    """Make one axis of the mapped one and the rows, where `x` alone is mapped."""
    if axes[1:] != (None, None):
        return jax.vmap(partial(_layer_unfused, **params), axes)(*operands), 0
    x = jnp.moveaxis(operands[0], axes[0], 0)
    rows = _layer.bind(x.reshape(-1, x.shape[-1]), *operands[1:], **params)
    return rows.reshape(*x.shape[:2], rows.shape[-1]), 0


def _gradient_mapped(operands: Any, axes: Any, **params: Any) -> tuple[list[Array], list[int]]:
    return jax.vmap(partial(_gradient_unfused, **params), axes)(*operands), [0, 0]


def _define(primitive: Primitive, kernel_name: str, result: Any) -> None:
    call = partial(call_kernel, kernel_name, result)
    primitive.def_abstract_eval(result)
    primitive.def_impl(jax.jit(call, static_argnames=("units", "gelu")))
    lowering = mlir.lower_fun(call, multiple_results=primitive.multiple_results)
    mlir.register_lowering(primitive, lowering, platform="cpu")


_define(_layer, native.AFFINE, _layer_result)
ad.primitive_jvps[_layer] = _layer_jvp
ad.primitive_transposes[_layer] = _layer_transposed
batching.primitive_batchers[_layer] = _layer_mapped
_define(_gradient, native.AFFINE_GRADIENT, _gradient_result)
ad.primitive_jvps[_gradient] = _gradient_jvp
ad.primitive_transposes[_gradient] = _gradient_transposed
batching.primitive_batchers[_gradient] = _gradient_mapped
