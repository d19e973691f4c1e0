"""The platform and the devices that a program is built for; by default, the attached devices.

All code that depends on the device reads a `Target`, and no code asks JAX while it traces. A program
can therefore be built on one machine for another: for the devices of a topology description, or for
the lowering of another platform (`jax.export`).
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

PLATFORMS = ("cpu", "gpu", "tpu")
_ALIASES = {"cuda": "gpu", "rocm": "gpu"}


def check_platform(name: str) -> str:
    """Return the name of a platform in this package: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: another name.
    """
    platform = _ALIASES.get(name, name)
    if platform not in PLATFORMS:
        raise ValueError(f"unknown platform {name!r}; known: {', '.join(PLATFORMS)}")
    return platform


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices, of all processes, that a program is built for, and their platform.

    Attributes:
      devices: attached devices, or those of a topology description.
      process_index: index of this process; devices of other processes are not local.
    Raises:
      ValueError: no device, or devices of a platform that is not known.
    """

    devices: tuple[Any, ...]
    process_index: int = 0

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a target needs at least one device")
        check_platform(self.devices[0].platform)

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return check_platform(self.devices[0].platform)

    @property
    def count(self) -> int:
        """The number of devices, over all processes."""
        return len(self.devices)

    @property
    def local(self) -> tuple[Any, ...]:
        """The devices of this process."""
        return tuple(d for d in self.devices if d.process_index == self.process_index)

    def mesh(self) -> Mesh:
        """Return all devices as one axis, `data`."""
        return Mesh(np.asarray(self.devices), ("data",))


def attached() -> Target:
    """Return the devices that JAX has found. Call it when a program is set up, not while tracing."""
    return Target(tuple(jax.devices()), jax.process_index())
