"""Names of topologies to targets whose devices are not there."""

import math
import re

from guidedflow.registry import choose
from guidedflow.target import Target

# Slices that Google's documentation lists for chips on a plane and in space.
_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SPACE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES = {
    "v2": _PLANE,
    "v3": _PLANE,
    "v4": _SPACE,
    "v5e": _PLANE,
    "v5p": _SPACE,
    "v6e": _PLANE,
    "tpu7x": _SPACE,
}
"""Generations of TPUs to slices of theirs; others of the same number of axes may do too."""


def target_of(name: str) -> Target:
    """Return the devices of a topology, which need not be attached.

    Args:
      name: generation and slice, as "v5e:4x4".
    Raises:
      ValueError: an unknown topology (the message says the nearest).
      RuntimeError: the compiler is not installed (the message says what to install).
    """
    from jax.experimental import topologies  # no other command needs it

    generation, _, size = name.partition(":")
    slices = choose("chip", generation, SLICES)
    if not re.fullmatch(r"\d+(x\d+){1,2}", size) or size.count("x") != slices[0].count("x"):
        raise ValueError(f"expected a topology as {generation}:{slices[3]}, got {name!r}")
    # Google's hosts have four chips; a slice of one is the exception.
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if size == "1x1" else {}
    try:
        made = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    except RuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise RuntimeError(
                "the compiler for TPUs is not installed: pip install 'jax[tpu]', on Linux; no TPU "
                "is needed"
            ) from error
        raise ValueError(
            f"unknown topology {name!r} (did you mean '{generation}:{_nearest(size, slices)}'?); "
            f"slices of {generation}: {', '.join(slices)}"
        ) from error
    return Target(tuple(made.devices))


def _nearest(size: str, slices: tuple[str, ...]) -> str:
    """Return the slice whose number of chips is nearest."""

    def chips(text: str) -> float:
        return math.log(max(math.prod(map(int, text.split("x"))), 1))

    return min(slices, key=lambda other: abs(chips(other) - chips(size)))
