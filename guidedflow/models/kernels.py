"""Who computes a network: names to operations."""

import importlib
from collections.abc import Callable

from jax.sharding import Mesh

from guidedflow.nn.operations import XLA, Operations
from guidedflow.registry import choose


def _native(name: str, xla: XLA) -> Operations:
    """Return what `guidedflow.native` has by that name."""
    return importlib.import_module("guidedflow.native").operations(name, xla)


OPERATIONS: dict[str, Callable[[str, XLA], Operations]] = {
    "xla": lambda name, xla: xla,
    **dict.fromkeys(("native", "amx", "avx512", "avx2"), _native),
}
"""Name of kernels to the operations of a network; other platforms than theirs get XLA's."""


def operations_for(
    kernels: str, attention: str, platform: str, devices: int = 1, mesh: Mesh | None = None
) -> Operations:
    """Return the operations of a network.

    Args:
      kernels: a name of `OPERATIONS`.
      attention: see `nn.attention.pick`.
      platform, devices, mesh: that they are for, see `nn.operations.XLA`.
    Raises:
      ValueError: an unknown name.
    """
    made = choose("kernels", kernels, OPERATIONS)
    return made(kernels, XLA(platform, attention, devices, mesh))
