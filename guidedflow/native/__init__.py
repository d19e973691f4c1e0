"""Kernels compiled for this machine's processor: the operations of a network in float32 on a CPU.

Only one row of `models.kernels.OPERATIONS` refers to this folder; it names `operations`. Without the
row and the folder, networks use XLA's operations.
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
"""The names that `operations` takes: "native" for the processor's fastest units, or the name of units."""


def operations(name: str, xla: XLA) -> Operations:
    """Return the operations of the named units if they can run here; else return `xla` and say why.

    Args:
      name: one of `NAMES`.
      xla: computes other dtypes, inputs with few rows, and everything on other platforms.
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
      xla: computes everything else.
    """

    units: str
    xla: XLA

    @property
    def name(self) -> str:
        """The units."""
        return self.units

    def attention_name(self, dtype: Any) -> str:
        """Return the name of the attention that runs for this dtype."""
        name = self.xla.attention_name(dtype)
        return self.units if name == "cpu" and dtype == jnp.float32 else name

    @property
    def devices(self) -> int:
        """One: on a mesh every device would compute the whole kernel."""
        return 1

    def over(self, devices: int) -> Operations:
        """Return XLA's operations if a batch is spread over several devices."""
        return self if devices == 1 else self.xla.over(devices)

    def unfused(self) -> Operations:
        """Return XLA's operations: a trace shows them in full."""
        return self.xla.unfused()

    @property
    def platform(self) -> str:
        """A CPU."""
        return self.xla.platform

    @property
    def rows_per_turn(self) -> int | None:
        """The same as for XLA's operations on a CPU."""
        return self.xla.rows_per_turn

    @property
    def _least_rows(self) -> int:
        return library.UNITS[self.units].least_rows

    def matmul(self, x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Array:
        """Return x·kernel; if x has fewer rows than the units' `least_rows`, XLA computes it."""
        if x.dtype != jnp.float32 or len(x) < self._least_rows:
            return self.xla.matmul(x, kernel)
        return native_matmul.multiply(x, kernel, self.units)

    def linear(self, x: Array, kernel: Array, bias: Array, gelu: bool = False) -> Array:
        """Return x·kernel + bias; with `gelu`, gelu(x)·kernel + bias.

        If the input has fewer rows than the units' `least_rows`, counting the rows of a `vmap` axis,
        only the gradient of kernel and bias runs in a kernel; XLA computes the rest.
        """
        if x.dtype != jnp.float32:
            return self.xla.linear(x, kernel, bias, gelu)
        return native_linear.affine(x, kernel, bias, self.units, gelu, self._least_rows)

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """Attend by XLA, because the kernels compute only self-attention."""
        return self.xla.attention(q, k, v, mask)

    def self_attention(self, packed: Float[Array, "b n three_h_d"], heads: int) -> Array:
        """Attend from every token to every token: one kernel, and another for the gradient."""
        if self.attention_name(packed.dtype) != self.units:
            return self.xla.self_attention(packed, heads)
        return native_attention.self_attention(packed, heads, self.units)

    def adaptive_normalize(self, x: Array, shift: Array, scale: Array) -> Array:
        """Return (1 + scale)·normalize(x) + shift: one kernel, and another for the gradient."""
        dtype = jnp.result_type(x, shift, scale)
        if dtype != jnp.float32:
            return self.xla.adaptive_normalize(x, shift, scale)
        x, shift, scale = (v.astype(dtype) for v in (x, shift, scale))
        return native_normalization.adaptive_normalize(x, shift, scale, self.units)

    def whole(self, parameter: Array) -> Array:
        """Return the parameter unchanged, because it is not sharded."""
        return parameter

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve by XLA."""
        return self.xla.convolve(x, kernel, stride)
