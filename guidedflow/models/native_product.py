"""A float32 product by a kernel compiled for this machine's processor, as a primitive of JAX.

On the matrix units (AMX) of some x86-64 processors, which multiply bfloat16 and add in float32, each
number is split into three bfloat16 of falling size, a = a₀ + a₁ + a₂ to all 24 bits, and

  a·b ≈ a₀b₀ + a₁b₀ + a₂b₀ + a₀b₁ + a₁b₁ + a₀b₂,

whose left-out terms are below float32's rounding (`kernels/tiles.h`).  Elsewhere it is one fused
multiply-add after another, on vectors as wide as the processor's (`kernels/lanes.h`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from guidedflow.models import native


def multiply(
    x: Float[Array, "*stack m k"],
    y: Float[Array, "*stack k n"],
    units: str,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Float[Array, "*stack m n"]:
    """Return the product of two matrices, or of two stacks of them entry by entry.

    Differentiable to every order, forwards and backwards; `vmap` folds an axis of `x` alone into its
    rows and makes stacks of any other.  On the matrix units infinite entries give NaN, and numbers
    below 1e-38 count as 0.  Partitioned by a mesh it is computed whole on every device; under
    `shard_map` and `pmap` it is not.

    Args:
      x, y: float32, of rank 2, or both of rank 3.
      units: what computes, a name of `native.UNITS`.
      transpose_x, transpose_y: whether the last two axes of an operand are read the other way round.
    Raises:
      ValueError: other dtypes or ranks, or shapes that do not go together.
      native.Unavailable: see `native.load`.
    """
    native.load(units)
    x, y = _alike(x, y)
    return _product.bind(x, y, units=units, transpose_x=transpose_x, transpose_y=transpose_y)


def affine(
    x: Float[Array, "m k"],
    kernel: Float[Array, "k n"],
    bias: Float[Array, " n"],
    units: str,
    gelu: bool = False,
) -> Float[Array, "m n"]:
    """Return x·kernel + bias, or GELU of it, each part of the product finished while it is in cache.

    The hyperbolic-tangent form of GELU, Hendrycks & Gimpel 2016, section 2.  Differentiable as
    `multiply` is, by it; a derivative computes GELU apart.  `vmap` folds an axis of `x` alone.

    Args:
      x, kernel, bias: float32.
      units: what computes, a name of `native.UNITS`.
      gelu: whether GELU follows.
    Raises:
      ValueError: other dtypes or ranks, or shapes that do not go together.
      native.Unavailable: see `native.load`.
    """
    native.load(units)
    _affine_result(*map(jax.typeof, (x, kernel, bias)), units=units, gelu=gelu)
    if not x.size or not kernel.size:
        return _apart(x, kernel, bias, units=units, gelu=gelu)
    return _affine.bind(*_alike(x, kernel, bias), units=units, gelu=gelu)


def _apart(x: Array, kernel: Array, bias: Array, *, units: str, gelu: bool) -> Array:
    y = multiply(x, kernel, units) + bias[None]
    return recomputed_gelu(y) if gelu else y


# A derivative computes element by element what lies between two products again, from what the first
# one gave: on CPU that is faster than keeping the parts.
recomputed_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))


def _affine_result(x: Any, kernel: Any, bias: Any, *, units: str, gelu: bool) -> Any:
    result = _result(x, kernel, units=units, transpose_x=False, transpose_y=False)
    if result.ndim != 2 or bias.shape != result.shape[1:] or bias.dtype != jnp.float32:
        raise ValueError(f"no bias {bias.dtype}{bias.shape} of a product {result.shape}")
    return result


def _affine_call(x: Array, kernel: Array, bias: Array, *, units: str, gelu: bool) -> Array:
    result = jax.ShapeDtypeStruct((x.shape[0], kernel.shape[1]), x.dtype)
    return jax.ffi.ffi_call(native.target(native.AFFINE, units), result)(x, kernel, bias, gelu=gelu)


def _affine_jvp(primals: Any, tangents: Any, *, units: str, gelu: bool) -> tuple[Array, Array]:
    x, kernel, _ = primals
    if gelu:

        def apart(x: Array, kernel: Array, bias: Array) -> Array:
            return recomputed_gelu(affine(x, kernel, bias, units))

        return jax.jvp(apart, primals, tuple(map(ad.instantiate_zeros, tangents)))
    y = _affine.bind(*primals, units=units, gelu=False)
    dx, dkernel, dbias = tangents
    parts = []
    if type(dx) is not ad.Zero:
        parts.append(multiply(dx, kernel, units))
    if type(dkernel) is not ad.Zero:
        parts.append(multiply(x, dkernel, units))
    if type(dbias) is not ad.Zero:
        parts.append(jnp.broadcast_to(dbias[None], y.shape))
    return y, sum(parts[1:], parts[0])


def _affine_mapped(operands: Any, axes: Any, *, units: str, gelu: bool) -> tuple[Array, int]:
    if axes[1:] != (None, None):
        return jax.vmap(partial(_apart, units=units, gelu=gelu), axes)(*operands), 0
    x, kernel, bias = operands
    x = jnp.moveaxis(x, axes[0], 0)
    rows = affine(x.reshape(-1, x.shape[-1]), kernel, bias, units, gelu)
    return rows.reshape(*x.shape[:2], rows.shape[-1]), 0


def _alike(*operands: Array) -> list[Array]:
    """Return operands that vary over the same axes of a mesh, under `shard_map`: what one lacks is
    cast, and the cast's transpose adds its gradient up over the devices."""
    axes = [frozenset(jax.typeof(x).manual_axis_type.varying) for x in operands]
    union = frozenset().union(*axes)
    return [
        jax.lax.pcast(x, tuple(union - own), to="varying") if union - own else x
        for x, own in zip(operands, axes, strict=True)
    ]


def _result(x: Any, y: Any, *, units: str, transpose_x: bool, transpose_y: bool) -> Any:
    (*stack, m, k), (*others, same, n) = x.shape, y.shape
    m, k = (k, m) if transpose_x else (m, k)
    same, n = (n, same) if transpose_y else (same, n)
    fits = stack == others and len(stack) < 2 and k == same
    if not fits or x.dtype != jnp.float32 or y.dtype != jnp.float32:
        raise ValueError(f"no product of {x.dtype}{x.shape} and {y.dtype}{y.shape}")
    return reshaped(x, (*stack, m, n))


def reshaped(aval: Any, shape: tuple[int, ...]) -> Any:
    """Return the type of `aval` with another shape of the same rank, unsharded."""
    whole = aval.sharding.update(spec=PartitionSpec(*[None] * len(shape)))
    return aval.update(shape=shape, sharding=whole, weak_type=False)


def _call(x: Array, y: Array, *, units: str, transpose_x: bool, transpose_y: bool) -> Array:
    operands = jax.typeof(x), jax.typeof(y)
    result = _result(*operands, units=units, transpose_x=transpose_x, transpose_y=transpose_y)
    target = native.target(native.PRODUCT, units)
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(result.shape, result.dtype))
    return call(x, y, transpose_x=transpose_x, transpose_y=transpose_y)


def _to_x(
    ct: Array, x: Any, y: Array, *, units: str, transpose_x: bool, transpose_y: bool
) -> Array:
    if transpose_x:
        return multiply(y, ct, units, transpose_y, True)
    return multiply(ct, y, units, False, not transpose_y)


def _to_y(
    ct: Array, x: Array, y: Any, *, units: str, transpose_x: bool, transpose_y: bool
) -> Array:
    if transpose_y:
        return multiply(ct, x, units, True, transpose_x)
    return multiply(x, ct, units, not transpose_x, False)


def _mapped(
    operands: Any, axes: Any, *, units: str, transpose_x: bool, transpose_y: bool
) -> tuple[Array, int]:
    (x, y), (x_axis, y_axis) = operands, axes
    if y_axis is None and y.ndim == 2 and not transpose_x:
        x = jnp.moveaxis(x, x_axis, 0)
        rows = multiply(x.reshape(-1, x.shape[-1]), y, units, False, transpose_y)
        return rows.reshape(*x.shape[:2], rows.shape[-1]), 0
    size = y.shape[y_axis] if x_axis is None else x.shape[x_axis]
    stacks = [batching.bdim_at_front(v, axis, size) for v, axis in ((x, x_axis), (y, y_axis))]
    left, right = (stack.reshape(-1, *stack.shape[-2:]) for stack in stacks)
    result = multiply(left, right, units, transpose_x, transpose_y)
    return result.reshape(*stacks[0].shape[:-2], *result.shape[-2:]), 0


_product = Primitive("guidedflow_product")
_product.def_abstract_eval(_result)
_product.def_impl(jax.jit(_call, static_argnames=("units", "transpose_x", "transpose_y")))
mlir.register_lowering(_product, mlir.lower_fun(_call, multiple_results=False), platform="cpu")
ad.defbilinear(_product, _to_x, _to_y)
batching.primitive_batchers[_product] = _mapped

_affine = Primitive("guidedflow_affine")
_affine.def_abstract_eval(_affine_result)
_affine.def_impl(jax.jit(_affine_call, static_argnames=("units", "gelu")))
mlir.register_lowering(
    _affine, mlir.lower_fun(_affine_call, multiple_results=False), platform="cpu"
)
ad.primitive_jvps[_affine] = _affine_jvp
batching.primitive_batchers[_affine] = _affine_mapped
