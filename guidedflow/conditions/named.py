"""Several conditions together, by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from guidedflow.conditions.condition import Condition, PartRates
from guidedflow.registry import choose
from guidedflow.types import Cond


@dataclasses.dataclass(frozen=True)
class Named:
    """Parts by name, in one mapping: a part that is a mapping itself adds its entries to it.

    {"label": Labels, "prompt": Prompts} is {"label": (b,), "ids": (b, n), "mask": (b, n)}.

    Attributes:
      parts: name to condition, at least one.
      rates: at which a part alone is dropped in training, by its name, each in [0, 1]; 0 for others.
        The whole is dropped at the rate of the training itself.
    Raises:
      ValueError: no part, two parts with an entry of one name, parts within a part, or a rate of an
        unknown part or out of range.
    """

    parts: Mapping[str, Condition]
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("expected at least one part")
        seen: dict[str, str] = {}
        for name, part in self.parts.items():
            if isinstance(part, Named):
                raise ValueError(f"part {name!r} has parts itself; name all of them in one")
            for entry in _entries(name, part):
                if entry in seen:
                    raise ValueError(f"parts {seen[entry]!r} and {name!r} both have {entry!r}")
                seen[entry] = name
        for name, rate in self.rates.items():
            choose("part", name, self.parts)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of {name!r} must lie in [0, 1], got {rate}")

    @property
    def fields(self) -> tuple[str, ...]:
        """A batch of data has the fields of every part."""
        return tuple(field for part in self.parts.values() for field in part.fields)

    @property
    def gives(self) -> frozenset[str]:
        """A network must take every part."""
        return frozenset().union(*(part.gives for part in self.parts.values()))

    @property
    def part_rates(self) -> PartRates:
        """Each part's entries are dropped together, at its rate."""
        return tuple(
            (_entries(name, self.parts[name]), rate) for name, rate in self.rates.items() if rate
        )

    def from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of a batch of data."""
        return _merged({name: part.from_batch(batch) for name, part in self.parts.items()})

    def parse(self, asked: Sequence[Any]) -> dict[str, Any]:
        """Return what {part: entry} asks for; a part that an entry leaves out is its null.

        Raises:
          ValueError: an entry that is no such mapping, an unknown part, or as the part says.
        """
        for entry in asked:
            if not isinstance(entry, Mapping):
                raise ValueError(f"expected a mapping of {list(self.parts)}, got {entry!r}")
            for name in entry:
                choose("part of the condition", name, self.parts)
        return _merged({name: _filled(name, part, asked) for name, part in self.parts.items()})

    def null(self) -> dict[str, Any]:
        """Return every part's null."""
        return _merged({name: part.null() for name, part in self.parts.items()})

    def example(self, batch: int) -> dict[str, Any]:
        """Return every part's."""
        return _merged({name: part.example(batch) for name, part in self.parts.items()})

    def every(self) -> list[Any]:
        """Return everything of the first part that has a list, the other parts null."""
        for name, part in self.parts.items():
            if part.every():
                return [{name: entry} for entry in part.every()]
        return []

    def say(self, cond: Mapping[str, Any]) -> list[str]:
        """Return what each part says, with commas; of a null part nothing."""
        columns = [self._say(name, part, cond) for name, part in self.parts.items()]
        return [", ".join(filter(None, row)) for row in zip(*columns, strict=True)]

    def _say(self, name: str, part: Condition, cond: Mapping[str, Any]) -> list[str]:
        entries = {entry: np.asarray(cond[entry]) for entry in _entries(name, part)}
        null = _merged({name: part.null()})
        count = len(next(iter(entries.values())))
        said = [""] * count
        for i in range(count):
            row = {entry: leaf[i : i + 1] for entry, leaf in entries.items()}
            if any(np.any(leaf[0] != np.asarray(null[entry])) for entry, leaf in row.items()):
                said[i] = part.say(row if set(row) != {name} else row[name])[0]
        return said

    def identity(self) -> dict[str, Any]:
        """A checkpoint must agree about every part."""
        return {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.identity().items()
        }

    def network_fields(self) -> dict[str, Any]:
        """A network has the fields of every part."""
        fields: dict[str, Any] = {}
        for part in self.parts.values():
            for name, value in part.network_fields().items():
                fields[name] = fields[name] + value if name in fields else value
        return fields

    def description(self) -> dict[str, Any]:
        """Return the fields."""
        return {"parts": dict(self.parts), "rates": dict(self.rates)}


def entries(condition: Condition, gives: str, texts: Sequence[str]) -> list[Any]:
    """Return texts as what `parse` takes, for the part of a condition that gives a thing.

    Args:
      condition: of one part, or `Named`.
      gives: "label" or "prompts", for instance.
      texts: one an example.
    Raises:
      ValueError: no part of the condition gives that.
    """
    if gives not in condition.gives:
        known = ", ".join(sorted(condition.gives))
        raise ValueError(f"this model is told {known}, not {gives}")
    if not isinstance(condition, Named):
        return list(texts)
    (name, *_) = [name for name, part in condition.parts.items() if gives in part.gives]
    return [{name: text} for text in texts]


def _merged(parts: Mapping[str, Cond]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name, cond in parts.items():
        whole.update(cond if isinstance(cond, Mapping) else {name: cond})
    return whole


def _entries(name: str, part: Condition) -> tuple[str, ...]:
    return tuple(_merged({name: part.example(1)}))


def _filled(name: str, part: Condition, asked: Sequence[Mapping[str, Any]]) -> Cond:
    """Return a part as it is asked for, its null where it is not."""
    rows = [row for row, entry in enumerate(asked) if name in entry]
    whole = jax.tree.map(
        lambda leaf: np.repeat(np.asarray(leaf)[None], len(asked), axis=0), part.null()
    )
    if not rows:
        return whole
    given = part.parse([asked[row][name] for row in rows])

    def fill(into: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        into[rows] = leaf
        return into

    return jax.tree.map(fill, whole, given)
