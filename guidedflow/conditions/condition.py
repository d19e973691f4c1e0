"""The protocol of a condition's description."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from guidedflow.types import Cond

PartRates = tuple[tuple[tuple[str, ...], float], ...]
"""(entries of the condition that are dropped together, rate) of every part that is dropped alone."""


class Condition(Protocol):
    """Describes one kind of condition; frozen, and equal by value.

    A condition of b examples is a pytree whose leaves have b first. Another kind is one class with
    these methods, added to `described.KINDS`.

    Attributes:
      fields: names in a batch of data that the condition is made of.
      gives: what a network must take to be told it, as `nn.capabilities.Capabilities.takes` names it:
        "label", "scalars", "prompts", "image", or a name of your own.
      part_rates: what is dropped alone in training, beside the rate at which the whole is; most
        conditions have one part and give ().
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def gives(self) -> frozenset[str]: ...

    @property
    def part_rates(self) -> PartRates: ...

    def from_batch(self, batch: Mapping[str, Any]) -> Cond:
        """Return the condition of a batch of data."""

    def parse(self, asked: Sequence[Any]) -> Cond:
        """Return what a user asks for, one example an entry, as numpy arrays.

        An entry is what the kind says; every kind understands text, which a command line gives.

        Raises:
          ValueError: an entry that this condition does not know; the message says the nearest.
        """

    def null(self) -> Cond:
        """Return the null of one example, without the batch axis."""

    def example(self, batch: int) -> Cond:
        """Return any valid condition of this many examples, to shape or initialise with."""

    def every(self) -> list[Any]:
        """Return everything that can be asked for, where that is a list; else nothing."""

    def say(self, cond: Cond) -> list[str]:
        """Return how each example's condition is said in a title or a file."""

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree about, as plain JSON values."""

    def network_fields(self) -> dict[str, Any]:
        """Return the fields of a network that takes this condition, as {"num_classes": 10}."""

    def description(self) -> dict[str, Any]:
        """Return everything that `type(self)(**description)` needs.

        Plain JSON values, other conditions, and mappings of these by name.
        """
