"""Named numbers: one float an example each, as the scale that a student takes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guidedflow.conditions.condition import PartRates
from guidedflow.registry import choose


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One finite number a name; a condition is {name: (b,)}.

    Attributes:
      names: of the numbers, at least one, also in a batch of data.
      nulls: the null of each; zeros by default.
    Raises:
      ValueError: no name, one twice, or another number of nulls.
    """

    names: tuple[str, ...]
    nulls: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        nulls = tuple(map(float, self.nulls)) or (0.0,) * len(self.names)
        object.__setattr__(self, "nulls", nulls)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"expected at least one name, each once, got {self.names}")
        if len(nulls) != len(self.names):
            raise ValueError(f"{len(self.names)} numbers have {len(nulls)} nulls")

    @property
    def fields(self) -> tuple[str, ...]:
        """A batch of data has the numbers by their names."""
        return self.names

    @property
    def gives(self) -> frozenset[str]:
        """A network must take numbers beside the time."""
        return frozenset({"scalars"})

    @property
    def part_rates(self) -> PartRates:
        """All numbers are dropped together."""
        return ()

    def from_batch(self, batch: Mapping[str, Any]) -> dict[str, Float[Array, " b"]]:
        """Return the numbers of a batch of data."""
        return {name: jnp.asarray(batch[name], jnp.float32) for name in self.names}

    def parse(self, asked: Sequence[Any]) -> dict[str, Float[np.ndarray, " b"]]:
        """Return numbers; an entry is {name: number}, "name=number …", or one number for one name.

        A name that an entry leaves out has its null.

        Raises:
          ValueError: an unknown name, or what is no finite number.
        """
        rows = [{**dict(zip(self.names, self.nulls, strict=True)), **self._row(e)} for e in asked]
        return {name: np.asarray([row[name] for row in rows], np.float32) for name in self.names}

    def _row(self, entry: Any) -> dict[str, float]:
        if isinstance(entry, str) and "=" in entry:
            entry = dict(part.partition("=")[::2] for part in entry.split())
        if not isinstance(entry, Mapping):
            if len(self.names) > 1:
                raise ValueError(f"expected numbers as '{'=1 '.join(self.names)}=1', got {entry!r}")
            entry = {self.names[0]: entry}
        known = dict.fromkeys(self.names)
        for name in entry:
            choose("number", name, known)
        return {name: _finite(name, value) for name, value in entry.items()}

    def null(self) -> dict[str, Float[Array, ""]]:
        """Return the nulls."""
        pairs = zip(self.names, self.nulls, strict=True)
        return {name: jnp.float32(value) for name, value in pairs}

    def example(self, batch: int) -> dict[str, Float[Array, " b"]]:
        """Return the nulls for all."""
        return {name: jnp.full(batch, value) for name, value in self.null().items()}

    def every(self) -> list[Any]:
        """Numbers have no list."""
        return []

    def say(self, cond: Mapping[str, Any]) -> list[str]:
        """Return "name=number" of each, which `parse` understands."""
        columns = [np.asarray(cond[name]).tolist() for name in self.names]
        return [
            " ".join(f"{name}={value:g}" for name, value in zip(self.names, row, strict=True))
            for row in zip(*columns, strict=True)
        ]

    def identity(self) -> dict[str, Any]:
        """A checkpoint must have the same numbers."""
        return {"numbers": list(self.names)}

    def network_fields(self) -> dict[str, Any]:
        """A network has an embedding of each."""
        return {"scalars": self.names}

    def description(self) -> dict[str, Any]:
        """Return the fields."""
        return {"names": list(self.names), "nulls": list(self.nulls)}


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected {name} as a finite number, got {value!r}")
    return number
