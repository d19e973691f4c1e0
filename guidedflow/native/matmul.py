"""A float32 matmul by a kernel compiled for this machine's processor, as a JAX primitive.

The matrix units (AMX) of some x86-64 processors multiply bfloat16 numbers and add in float32. There each
number is split into three bfloat16 numbers of falling size, a = a₀ + a₁ + a₂ to all 24 bits, and

  a·b ≈ a₀b₀ + a₁b₀ + a₂b₀ + a₀b₁ + a₁b₁ + a₀b₂.

The terms left out are below float32's rounding (`sources/tiles.h`).  Other processors use fused
multiply-add on their widest vectors (`sources/lanes.h`).  On these, a matmul of at least 128 rows, 128
columns and 64 terms takes seven multiplications instead of eight, by Winograd's form of Strassen's
algorithm (`sources/strassen.h`).  Its error is about twice that of a plain float32 matmul.  The error is
relative to the larger of two neighbouring rows and of the columns multiplied together, not to the terms
of each number alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from guidedflow.native import library


def multiply(
    x: Float[Array, "*stack m k"],
    y: Float[Array, "*stack k n"],
    units: str,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Float[Array, "*stack m n"]:
    """Return the matmul of two matrices, or of two stacks of matrices pair by pair.

    It is differentiable to every order, in forward and reverse mode.  If `vmap` maps only `x`, its axis
    is folded into the rows; otherwise the mapped axis becomes a stack.  Infinite entries may give NaN, on
    vectors also in the neighbouring row; on the matrix units numbers below 1e-38 count as 0.  If the
    program is partitioned over a mesh, every device computes the whole matmul; under `shard_map` and
    `pmap` each computes its part.

    Args:
      x, y: float32, of rank 2, or both of rank 3.
      units: the units that compute it, a name of `library.UNITS`.
      transpose_x, transpose_y: whether the last two axes of an operand are swapped.
    Raises:
      ValueError: other dtypes or ranks, or shapes that do not match.
      library.Unavailable: see `library.load`.
    """
    library.load(units)
    x, y = alike(x, y)
    return _product.bind(x, y, units=units, transpose_x=transpose_x, transpose_y=transpose_y)


def alike(*operands: Array) -> list[Array]:
    """Return operands that vary over the same mesh axes under `shard_map`. An operand that lacks an axis
    is cast; the transpose of the cast sums its gradient over the devices."""
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
    """Return the type of `aval` with another shape, unsharded."""
    whole = aval.sharding.update(spec=PartitionSpec(*[None] * len(shape)))
    return aval.update(shape=shape, sharding=whole, weak_type=False)


def call_kernel(name: str, result: Any, *operands: Array, units: str, **attributes: Any) -> Any:
    """Call a kernel; `result` computes the types of its results from the types of the operands."""
    made = result(*map(jax.typeof, operands), units=units, **attributes)
    shapes = jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), made)
    return jax.ffi.ffi_call(library.target(name, units), shapes)(*operands, **attributes)


def merged(primitive: Primitive, operands: Any, axes: Any, **params: Any) -> tuple[Any, Any]:
    """Batching rule: fold the mapped axis into the batch of examples."""
    size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
    stacks = (batching.bdim_at_front(v, axis, size) for v, axis in zip(operands, axes, strict=True))
    flat = (v.reshape(size * v.shape[1], *v.shape[2:]) for v in stacks)
    made = primitive.bind(*alike(*flat), **params)
    made = jax.tree.map(lambda v: v.reshape(size, v.shape[0] // size, *v.shape[1:]), made)
    return made, jax.tree.map(lambda _: 0, made)


_call = partial(call_kernel, library.PRODUCT, _result)


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
