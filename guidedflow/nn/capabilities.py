"""What a network can do beside its plain call, declared by the network itself."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a network declares in its property `capabilities`.

    Attributes:
      output: "field", a value at every place of the image, or "logits", one a class.
      takes_scalars: whether it has a field `scalars`, names of numbers that it takes.
      transformer: whether it is a stack of equal blocks over patches, with fields `width`, `depth`,
        `heads`, `mlp_ratio` and `patch`.
      perturbed: whether `network.perturbed(how)` gives it with its middle block perturbed.
      tabulated: whether its modulations can be computed alone, see `models.tabulated`.
      examples_per_turn: how many examples are best evaluated together on its device; None for the
        whole batch.
    """

    output: str = "field"
    takes_scalars: bool = False
    transformer: bool = False
    perturbed: bool = False
    tabulated: bool = False
    examples_per_turn: int | None = None


def capabilities(network: Any) -> Capabilities:
    """Return what a network declares; a network that declares nothing has its plain call alone."""
    return getattr(network, "capabilities", Capabilities())
