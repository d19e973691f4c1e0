"""Class labels: one integer an example."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from guidedflow.conditions.condition import PartRates
from guidedflow.registry import nearest


@dataclasses.dataclass(frozen=True)
class Labels:
    """One class an example; the null is the class after the last.

    Attributes:
      num_classes: classes without the null class, at least 1.
      names: of the classes in order, or none.
    Raises:
      ValueError: fewer than one class, or another number of names.
    """

    num_classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.names and len(self.names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes have {len(self.names)} names")

    @property
    def fields(self) -> tuple[str, ...]:
        """A batch of data has the classes as `label`."""
        return ("label",)

    @property
    def gives(self) -> frozenset[str]:
        """A network must take a class."""
        return frozenset({"label"})

    @property
    def part_rates(self) -> PartRates:
        """A class is dropped whole."""
        return ()

    def from_batch(self, batch: Mapping[str, Any]) -> Int[Array, " b"]:
        """Return the labels of a batch of data."""
        return batch["label"]

    def parse(self, asked: Sequence[Any]) -> Int[np.ndarray, " b"]:
        """Return classes by number or by name.

        Raises:
          ValueError: no class of that number or name.
        """
        return np.asarray([self._index(entry) for entry in asked], np.int32)

    def _index(self, entry: str | int) -> int:
        text = str(entry).strip()
        if text in self.names:
            return self.names.index(text)
        if not text.lstrip("-").isdigit():
            known = ", ".join(self.names[:20]) or f"0 to {self.num_classes - 1}"
            hint = nearest(text, list(self.names))
            raise ValueError(f"unknown class {text!r}{hint}; this model knows classes {known}")
        if not 0 <= int(text) < self.num_classes:
            raise ValueError(
                f"label {text} is out of range: this model knows classes 0 to {self.num_classes - 1}"
            )
        return int(text)

    def null(self) -> Int[Array, ""]:
        """Return the null class."""
        return jnp.int32(self.num_classes)

    def example(self, batch: int) -> Int[Array, " b"]:
        """Return class 0 for all."""
        return jnp.zeros(batch, jnp.int32)

    def every(self) -> list[Any]:
        """Return every class."""
        return list(range(self.num_classes))

    def say(self, cond: Int[np.ndarray, " b"]) -> list[str]:
        """Return the names of the classes, or their numbers."""
        return [self.names[i] if self.names else str(i) for i in np.asarray(cond).tolist()]

    def identity(self) -> dict[str, Any]:
        """A checkpoint must have as many classes."""
        return {"num_classes": self.num_classes}

    def network_fields(self) -> dict[str, Any]:
        """A network has a table of that many classes."""
        return {"num_classes": self.num_classes}

    def description(self) -> dict[str, Any]:
        """Return the fields."""
        return {"num_classes": self.num_classes, "names": list(self.names)}
