"""Kernels compiled for this machine's processor: the operations of a network in float32 on a CPU.

Nothing else knows of this folder but one row of `training.registries.OPERATIONS`, which names
`operations`; without the two a network has XLA's operations.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.native import attention as native_attention
from guidedflow.native import library
from guidedflow.native import linear as native_linear
from guidedflow.native import matmul as native_matmul
from guidedflow.native import normalization as native_normalization
from guidedflow.nn.fallbacks import say_once
from guidedflow.nn.operations import XLA, Operations
from guidedflow.registry import choose

__all__ = ["NAMES", "Native", "operations"]

NAMES = ("native", *library.UNITS)
"""What `operations` takes: the fastest units of the processor, or units by name."""


def operations(name: str, xla: XLA) -> Operations:
    """Return the operations of the named units where they can run, else `xla`, and say why.

    Args:
      name: one of `NAMES`.
      xla: what computes other dtypes, few rows, and everything on another platform.
    Raises:
      ValueError: an unknown name.
    """
    choose("kernels", name, dict.fromkeys(NAMES))
    if xla.platform != "cpu" or xla.mesh is not None:
        where = "a mesh" if xla.mesh is not None else xla.platform
        say_once(
            f"{name} kernels are for one CPU device and the program is for {where}: XLA computes"
        )
        return xla
    reasons = []
    for units in library.UNITS if name == "native" else (name,):
        reason = library.find_hindrance(units)
        if not reason:
            return Native(units, xla)
        reasons.append(f"no {units} here: {reason}")
    say_once(f"XLA computes: {'; '.join(reasons)}")
    return xla


@dataclasses.dataclass(frozen=True)
class Native:
    """Operations in float32 by kernels for some units; XLA's for other dtypes.

    Attributes:
      units: a name of `library.UNITS`.
      xla: what else computes.
    """

    units: str
    xla: XLA

    @property
    def name(self) -> str:
        """The units."""
        return self.units

    def attention_name(self, dtype: Any) -> str:
        """Return which attention runs for this dtype."""
        name = self.xla.attention_name(dtype)
        return self.units if name == "cpu" and dtype == jnp.float32 else name

    @property
    def devices(self) -> int:
        """One: a mesh would compute a kernel whole on each of its devices."""
        return 1

    def over(self, devices: int) -> Operations:
        """Return XLA's operations where a batch is spread over several devices."""
        return self if devices == 1 else self.xla.over(devices)

    @property
    def platform(self) -> str:
        """A CPU."""
        return self.xla.platform

    @property
    def rows_per_turn(self) -> int | None:
        """As XLA's on a CPU."""
        return self.xla.rows_per_turn

    @property
    def _least_rows(self) -> int:
        return library.UNITS[self.units].least_rows

    def matmul(self, x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Array:
        """Return x·kernel; with fewer rows than the units' `least_rows`, XLA computes it."""
        if x.dtype != jnp.float32 or len(x) < self._least_rows:
            return self.xla.matmul(x, kernel)
        return native_matmul.multiply(x, kernel, self.units)

    def linear(self, x: Array, kernel: Array, bias: Array, gelu: bool = False) -> Array:
        """Return x·kernel + bias, or with GELU of x for x.

        With fewer rows than the units' `least_rows`, those of an axis under `vmap` among them, only
        the gradient of kernel and bias is a kernel's.
        """
        if x.dtype != jnp.float32:
            return self.xla.linear(x, kernel, bias, gelu)
        return native_linear.affine(x, kernel, bias, self.units, gelu, self._least_rows)

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """Attend as XLA does: kernels are for self-attention alone."""
        return self.xla.attention(q, k, v, mask)

    def self_attention(self, packed: Float[Array, "b n three_h_d"], heads: int) -> Array:
        """Attend from every token to every token by one program, and by one for its gradient."""
        if self.attention_name(packed.dtype) != self.units:
            return self.xla.self_attention(packed, heads)
        return native_attention.self_attention(packed, heads, self.units)

    def adaptive_normalize(self, x: Array, shift: Array, scale: Array) -> Array:
        """Return (1 + scale)·normalize(x) + shift by one program, and by one for its gradient."""
        dtype = jnp.result_type(x, shift, scale)
        if dtype != jnp.float32:
            return self.xla.adaptive_normalize(x, shift, scale)
        x, shift, scale = (v.astype(dtype) for v in (x, shift, scale))
        return native_normalization.adaptive_normalize(x, shift, scale, self.units)

    def whole(self, parameter: Array) -> Array:
        """Return the parameter: there are no shards."""
        return parameter

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve as XLA does."""
        return self.xla.convolve(x, kernel, stride)
