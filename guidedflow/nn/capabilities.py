"""What a network can do beside its plain call, declared by the network itself."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a network declares in its property `capabilities`.

    Attributes:
      output: "field", a value at every place of the image, or "logits", one a class.
      takes: what it can be told: "label" (integers, b), "scalars" (numbers, b, that its field `scalars`
        names), "tokens" (features b m d, with "mask"), "vector" (features b d), or another name.
      takes_scalars: whether it has a field `scalars`, names of numbers that it takes.
      transformer: whether it is a stack of equal blocks over patches, with fields `width`, `depth`,
        `heads`, `mlp_ratio` and `patch`.
      perturbed: whether `network.perturbed(how)` gives it with its middle block perturbed.
      tabulated: whether its modulations can be computed alone, see `models.tabulated`.
      examples_per_turn: how many examples are best evaluated together on its device; None for the
        whole batch.
    """

    output: str = "field"
    takes: frozenset[str] = frozenset({"label"})
    takes_scalars: bool = False
    transformer: bool = False
    perturbed: bool = False
    tabulated: bool = False
    examples_per_turn: int | None = None


def capabilities(network: Any) -> Capabilities:
    """Return what a network declares; a network that declares nothing has its plain call alone."""
    return getattr(network, "capabilities", Capabilities())


def over_devices(network: Any, devices: int) -> Any:
    """Return a network for a batch that is spread over so many devices, to draw with.

    A network that was given no operations stays as it is.
    """
    operations = getattr(network, "operations", None)
    return network if operations is None else network.clone(operations=operations.over(devices))


def unfused(network: Any) -> Any:
    """Return a network whose operations are all seen in its trace, each once, to count them."""
    plain = network
    if getattr(plain, "remat", "none") != "none":
        plain = plain.clone(remat="none")
    operations = getattr(plain, "operations", None)
    return plain if operations is None else plain.clone(operations=operations.unfused())
