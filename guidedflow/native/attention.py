"""Self-attention of a packed projection, as one kernel compiled for this machine's processor.

A projection writes queries, keys and values one after another into a token's features. `attention.cc`
reads them in this order and writes their gradient in the same order, so nothing is copied.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from guidedflow.native import library
from guidedflow.native.matmul import call_kernel, merged, reshaped
from guidedflow.nn.operations import XLA

Packed = Float[Array, "b n three_h_d"]


def self_attention(packed: Packed, heads: int, units: str) -> Float[Array, "b n h_d"]:
    """Attend from every token to every token, head by head.

    softmax(q·kᵀ/√d)·v.   Vaswani et al. 2017, eq. 1.

    Args:
      packed: float32, features (q k v), head, d of each token.
      heads: h, which divides a third of the features.
      units: the units that compute it, a name of `library.UNITS`.
    Returns:
      Features head, d of each token.
    Raises:
      ValueError: the features do not divide into 3 × heads, or the dtype is not float32.
      library.Unavailable: see `library.load`.
    """
    library.load(units)
    if packed.ndim != 3 or packed.shape[2] % (3 * heads) or packed.dtype != jnp.float32:
        shown = f"{packed.dtype}{packed.shape}"
        raise ValueError(f"no {heads} heads of float32 queries, keys and values in {shown}")
    return _attend.bind(packed, heads=heads, units=units)


def _unfused(packed: Packed, *, heads: int) -> Array:
    return XLA("cpu").self_attention(packed, heads)


# Three primitives: attention; its tangent, which is linear in the tangent of `packed`; and its gradient,
# the transpose of the tangent.  The last two are transposes of each other.  There is no kernel for the
# tangent nor for second derivatives; they are computed from `_unfused`.
_attend = Primitive("guidedflow_attention")
_tangent = Primitive("guidedflow_attention_tangent")
_gradient = Primitive("guidedflow_attention_gradient")


def _tangent_unfused(packed: Packed, tangent: Packed, *, heads: int, units: str) -> Array:
    return jax.jvp(lambda packed: _unfused(packed, heads=heads), (packed,), (tangent,))[1]


def _gradient_unfused(packed: Packed, cotangent: Array, *, heads: int, units: str) -> Array:
    (gradient,) = jax.vjp(lambda packed: _unfused(packed, heads=heads), packed)[1](cotangent)
    return gradient


def _attend_jvp(primals: Any, tangents: Any, *, heads: int, units: str) -> tuple[Array, Array]:
    mixed = _attend.bind(*primals, heads=heads, units=units)
    return mixed, _tangent.bind(*primals, *tangents, heads=heads, units=units)


def _unfused_jvp(
    function: Any, primals: Any, tangents: Any, *, heads: int, units: str
) -> tuple[Array, Array]:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(partial(function, heads=heads, units=units), primals, tangents)


def _transposed(
    other: Primitive, ct: Any, packed: Array, _: Any, *, heads: int, units: str
) -> tuple:
    if type(ct) is ad.Zero:
        return None, None
    return None, other.bind(packed, ct, heads=heads, units=units)


def _define(primitive: Primitive, result: Any, compute: Any, platform: str | None = None) -> None:
    primitive.def_abstract_eval(result)
    primitive.def_impl(jax.jit(compute, static_argnames=("heads", "units")))
    lowering = mlir.lower_fun(compute, multiple_results=False)
    mlir.register_lowering(primitive, lowering, platform=platform)
    batching.primitive_batchers[primitive] = partial(merged, primitive)


def _mixed(packed: Any, *_: Any, heads: int, units: str) -> Any:
    return reshaped(packed, (*packed.shape[:2], packed.shape[2] // 3))


def _same(packed: Any, *_: Any, heads: int, units: str) -> Any:
    return reshaped(packed, packed.shape)


_define(_attend, _mixed, partial(call_kernel, library.ATTENTION, _mixed), "cpu")
_define(_tangent, _mixed, _tangent_unfused)
_define(_gradient, _same, partial(call_kernel, library.ATTENTION_GRADIENT, _same), "cpu")
ad.primitive_jvps[_attend] = _attend_jvp
ad.primitive_jvps[_tangent] = partial(_unfused_jvp, _tangent_unfused)
ad.primitive_jvps[_gradient] = partial(_unfused_jvp, _gradient_unfused)
ad.primitive_transposes[_tangent] = partial(_transposed, _gradient)
ad.primitive_transposes[_gradient] = partial(_transposed, _tangent)
