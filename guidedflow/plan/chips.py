"""What chips can do at most, as their makers publish it."""

import dataclasses

_GOOGLE = "https://cloud.google.com/tpu/docs"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip.

    Attributes:
      name: of a topology, before its colon.
      flops: of dense products in bfloat16, FLOP/s.
      memory: bytes.
      bandwidth: of that memory, bytes/s.
      link: bytes/s that a chip sends to its neighbours over all its links; half of what is published
        as bidirectional.
      source: where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    source: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16e9, 819e9, 200e9, f"{_GOOGLE}/v5e"),
        Chip("v5p", 459e12, 95e9, 2765e9, 600e9, f"{_GOOGLE}/v5p"),
        Chip("v6e", 918e12, 32e9, 1638e9, 400e9, f"{_GOOGLE}/v6e"),
    )
}
"""Chips by name. Of others no bound is given."""


def least_seconds(chip: Chip, flops: float, traffic: float, sent: float) -> dict[str, float]:
    """Return seconds below which a program cannot come, one for each of the chip's limits.

    t ≥ operations / peak,   t ≥ bytes of memory / bandwidth,   t ≥ bytes sent / link.

    Args:
      flops: operations of one device.
      traffic: bytes that must be read or written once.
      sent: bytes that the device sends.
    """
    return {
        "products": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "links": sent / chip.link,
    }
