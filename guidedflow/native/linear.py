"""A linear layer and its gradient by kernels compiled for this machine's processor, as JAX primitives.

The kernels also apply GELU to the layer's input, add the bias, and sum the cotangent for the gradient of
the bias. They do so block by block while the data is in cache; GELU's result is not written to memory.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from guidedflow.native import library
from guidedflow.native.matmul import alike, call_kernel, multiply, reshaped
from guidedflow.nn.operations import recomputed_gelu


def affine(
    x: Float[Array, "m k"],
    kernel: Float[Array, "k n"],
    bias: Float[Array, " n"],
    units: str,
    gelu: bool = False,
    least_rows: int = 0,
) -> Float[Array, "m n"]:
    """Return x·kernel + bias; with `gelu`, gelu(x)·kernel + bias.

    GELU has its hyperbolic-tangent form, Hendrycks & Gimpel 2016, section 2.  The layer is
    differentiable to every order, in forward and reverse mode.  If `vmap` maps only `x`, its axis is
    folded into the rows.  On a mesh it behaves like `multiply`.

    Args:
      x, kernel, bias: float32.
      units: the units that compute it, a name of `library.UNITS`.
      gelu: whether GELU is applied to x first.
      least_rows: if x has fewer rows, counting the rows of a `vmap` axis, XLA computes the layer and
        the gradient of x. The gradient of kernel and bias always runs in a kernel.
    Raises:
      ValueError: other dtypes or ranks, or shapes that do not match.
      library.Unavailable: see `library.load`.
    """
    library.load(units)
    _layer_result(*map(jax.typeof, (x, kernel, bias)))
    if not x.size or not kernel.size:
        return _layer_unfused(x, kernel, bias, units=units, gelu=gelu, least_rows=least_rows)
    return _layer.bind(*alike(x, kernel, bias), units=units, gelu=gelu, least_rows=least_rows)


# Two primitives: the layer, and the gradient of its kernel and bias.  The layer is linear in kernel and
# bias, and the gradient is its transpose.  The gradient is linear in the cotangent, and the layer is the
# transpose of the gradient.
_layer = Primitive("guidedflow_affine")
_gradient = Primitive("guidedflow_affine_gradient")
_gradient.multiple_results = True


# ---- definitions ----


def _times(x: Array, kernel: Array, units: str, least_rows: int) -> Array:
    return multiply(x, kernel, units) if len(x) >= least_rows else x @ kernel


def _layer_unfused(
    x: Array, kernel: Array, bias: Array, *, units: str, gelu: bool, least_rows: int
) -> Array:
    x = recomputed_gelu(x) if gelu else x
    return _times(x, kernel, units, least_rows) + bias[None]


def _gradient_unfused(
    x: Array, cotangent: Array, *, units: str, gelu: bool, least_rows: int
) -> list[Array]:
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


# ---- derivatives ----


def _activated(x: Array, dx: Any, gelu: bool) -> tuple[Array, Any]:
    """Return the left operand of the matmul, x or gelu(x), and its tangent."""
    if not gelu:
        return x, dx
    if type(dx) is ad.Zero:
        return recomputed_gelu(x), dx
    return jax.jvp(recomputed_gelu, (x,), (dx,))


def _layer_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Array]:
    (x, kernel, _), (dx, dkernel, dbias) = primals, tangents
    units, least_rows = params["units"], params["least_rows"]
    y = _layer.bind(*primals, **params)
    activated, slope = _activated(x, dx, params["gelu"])
    parts = []
    if type(slope) is not ad.Zero:
        parts.append(_times(slope, kernel, units, least_rows))
    if ad.Zero not in (type(dkernel), type(dbias)):
        parts.append(_layer.bind(x, dkernel, dbias, **params))
    elif type(dkernel) is not ad.Zero:
        parts.append(_times(activated, dkernel, units, least_rows))
    elif type(dbias) is not ad.Zero:
        parts.append(jnp.broadcast_to(dbias[None], y.shape))
    return y, sum(parts[1:], parts[0])


def _gradient_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Array], list[Array]]:
    (x, cotangent), (dx, dcotangent) = primals, tangents
    units = params["units"]
    made = _gradient.bind(x, cotangent, **params)
    _, slope = _activated(x, dx, params["gelu"])
    if type(dcotangent) is ad.Zero:
        return made, [multiply(slope, cotangent, units, transpose_x=True), jnp.zeros_like(made[1])]
    of_kernel, of_bias = _gradient.bind(x, dcotangent, **params)
    if type(slope) is not ad.Zero:
        of_kernel += multiply(slope, cotangent, units, transpose_x=True)
    return made, [of_kernel, of_bias]


def _layer_transposed(ct: Any, x: Array, kernel: Any, bias: Any, **params: Any) -> list[Any]:
    if type(ct) is ad.Zero:
        return [None, None, None]
    return [None, *_gradient.bind(x, ct, **params)]


def _gradient_transposed(cts: Any, x: Array, _: Any, **params: Any) -> list[Any]:
    kernel, bias = map(ad.instantiate_zeros, cts)
    return [None, _layer.bind(x, kernel, bias, **params)]


# ---- under vmap ----


def _layer_mapped(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    """Fold the mapped axis into the rows if only `x` is mapped."""
    if axes[1:] != (None, None):
        return jax.vmap(partial(_layer_unfused, **params), axes)(*operands), 0
    x = jnp.moveaxis(operands[0], axes[0], 0)
    rows = _layer.bind(x.reshape(-1, x.shape[-1]), *operands[1:], **params)
    return rows.reshape(*x.shape[:2], rows.shape[-1]), 0


def _gradient_mapped(operands: Any, axes: Any, **params: Any) -> tuple[list[Array], list[int]]:
    return jax.vmap(partial(_gradient_unfused, **params), axes)(*operands), [0, 0]


def _layer_computed(*operands: Array, least_rows: int, **params: Any) -> Array:
    if len(operands[0]) < least_rows:
        return _layer_unfused(*operands, least_rows=least_rows, **params)
    return call_kernel(library.AFFINE, _layer_result, *operands, **params)


def _gradient_computed(*operands: Array, least_rows: int, **params: Any) -> list[Array]:
    return call_kernel(library.AFFINE_GRADIENT, _gradient_result, *operands, **params)


def _define(primitive: Primitive, computed: Any, result: Any) -> None:
    primitive.def_abstract_eval(result)
    primitive.def_impl(jax.jit(computed, static_argnames=("units", "gelu", "least_rows")))
    lowering = mlir.lower_fun(computed, multiple_results=primitive.multiple_results)
    mlir.register_lowering(primitive, lowering, platform="cpu")


_define(_layer, _layer_computed, _layer_result)
ad.primitive_jvps[_layer] = _layer_jvp
ad.primitive_transposes[_layer] = _layer_transposed
batching.primitive_batchers[_layer] = _layer_mapped
_define(_gradient, _gradient_computed, _gradient_result)
ad.primitive_jvps[_gradient] = _gradient_jvp
ad.primitive_transposes[_gradient] = _gradient_transposed
batching.primitive_batchers[_gradient] = _gradient_mapped
