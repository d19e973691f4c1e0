"""The product that every layer is made of, behind one function that picks who computes it."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.native import library as native
from guidedflow.nn.vmapped_rows import fold_mapped
from guidedflow.native.linear import affine as native_affine
from guidedflow.native.linear import recomputed_gelu
from guidedflow.native.matmul import multiply
from guidedflow.registry import choose

# "native" is the fastest of `native.UNITS` that the processor has.
BACKENDS = dict.fromkeys(("xla", "native", *native.UNITS))
_log = logging.getLogger(__name__)


def product(
    x: Float[Array, "rows d"], kernel: Float[Array, "d k"], backend: str = "xla"
) -> Float[Array, "rows k"]:
    """Return x·kernel in their dtype, accumulated in float32 or wider on a CPU.

    Args:
      x, kernel: of one dtype.
      backend: "xla"; or "native", float32 products by a kernel compiled for this CPU
        (`native_product`, which says what its error is), where `pick` finds it possible; fewer than its
        units' `least_rows` are XLA's; or a name of `native.UNITS`, that kernel and no other.
    Raises:
      ValueError: an unknown backend.
    """
    units, _ = pick(backend, x.dtype)
    if units != "xla" and len(x) >= native.UNITS[units].least_rows:
        return multiply(x, kernel, units)
    if jax.default_backend() == "cpu":
        return folded_product(x, kernel)
    # Accelerators' compilers fold a mapped axis themselves, and a reshape would tear a batch that is
    # sharded over devices.
    return x @ kernel


def affine(
    x: Float[Array, "rows d"],
    kernel: Float[Array, "d k"],
    bias: Float[Array, " k"],
    backend: str = "xla",
    gelu: bool = False,
) -> Float[Array, "rows k"]:
    """Return x·kernel + bias as one layer computes it, or with GELU of x for x.

    Args:
      x, kernel, bias: of one dtype.
      backend: see `product`; of fewer rows than `least_rows`, those of an axis under `vmap` among
        them, the gradient of kernel and bias alone is compiled.
      gelu: whether x passes through GELU, in its hyperbolic-tangent form, first.
    Raises:
      ValueError: an unknown backend.
    """
    units, _ = pick(backend, x.dtype)
    if units != "xla":
        return native_affine(x, kernel, bias, units, gelu, native.UNITS[units].least_rows)
    return product(recomputed_gelu(x) if gelu else x, kernel, backend) + bias[None]


def pick(backend: str, dtype: Any) -> tuple[str, str]:
    """Return what runs on the default device, "xla" or a name of `native.UNITS`, and why.

    Args:
      backend: a name.
      dtype: of the operands.
    Raises:
      ValueError: an unknown backend.
    """
    choose("products", backend, BACKENDS)
    if backend == "xla":
        return "xla", "asked for"
    platform = jax.default_backend()
    if platform != "cpu" or jnp.dtype(dtype) != jnp.float32:
        found = f"{platform} and {jnp.dtype(dtype)}"
        reason = f"{backend} is for float32 on a CPU, here are {found}"
    else:
        for units in native.UNITS if backend == "native" else (backend,):
            try:
                native.load(units)
                return units, "asked for" if units == backend else "the fastest of this processor"
            except native.Unavailable as error:
                reason = f"no {units} here: {error}"
    say_once(f"products run on xla: {reason}")
    return "xla", reason


@functools.cache
def say_once(message: str) -> None:
    """Warn of what this process falls back to, the first time alone."""
    _log.warning(message)


def _cpu_product(x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Float[Array, "rows k"]:
    # XLA's CPU compiler has fast 16-bit products (AMX) only for those that end in float32.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, preferred_element_type=dtype).astype(x.dtype)


folded_product = fold_mapped(_cpu_product, (True, False))
