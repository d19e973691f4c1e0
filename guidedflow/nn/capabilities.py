"""What a network can do beside its plain call, declared by the network itself."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a network declares in its property `capabilities`.

    Attributes:
      output: "field", a value at every place of the image, or "logits", one a class.
      takes: what it can be told: "label" (integers, b), "scalars" (numbers, b, that its field `scalars`
        names), "tokens" (features b m d, with "mask"), "vector" (features b d), "prompts" (unit numbers,
        see `conditions.Prompts`), "image", or a name that a condition of your own gives.
      takes_scalars: whether it has a field `scalars`, names of numbers that it takes.
      encodes: whether it has a method `encode(cond)` for what depends on the condition alone, whose
        result its call takes in the condition's place.
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
    encodes: bool = False


def capabilities(network: Any) -> Capabilities:
    """Return what a network declares; a network that declares nothing has its plain call alone."""
    return getattr(network, "capabilities", Capabilities())


def check_takes(network: Any, gives: frozenset[str]) -> None:
    """Raise ValueError unless a network takes all that a condition gives."""
    takes = capabilities(network).takes
    if not gives <= takes:
        raise ValueError(
            f"a {type(network).__name__} cannot be told {', '.join(sorted(gives - takes))}; "
            f"it takes {', '.join(sorted(takes)) or 'nothing'}"
        )


def over_devices(network: Any, devices: int) -> Any:
    """Return a network for a batch that is spread over so many devices, to draw with.

    A network that was given no operations stays as it is.
    """
    if (inner := _inner(network)) is not None:
        return network.clone(network=over_devices(inner, devices))
    operations = getattr(network, "operations", None)
    return network if operations is None else network.clone(operations=operations.over(devices))


def unfused(network: Any) -> Any:
    """Return a network whose operations are all seen in its trace, each once, to count them."""
    if (inner := _inner(network)) is not None:
        return network.clone(network=unfused(inner))
    plain = network
    if getattr(plain, "remat", "none") != "none":
        plain = plain.clone(remat="none")
    operations = getattr(plain, "operations", None)
    return plain if operations is None else plain.clone(operations=operations.unfused())


def _inner(network: Any) -> Any:
    """Return the network that one wraps, in its field `network`; None of others."""
    return getattr(network, "network", None)
