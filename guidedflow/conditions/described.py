"""Conditions to JSON and back: the table of kinds."""

from collections.abc import Callable, Mapping
from typing import Any

from guidedflow.conditions.condition import Condition
from guidedflow.conditions.labels import Labels
from guidedflow.registry import choose

KINDS: dict[str, Callable[..., Condition]] = {"labels": Labels}
"""Name in a file to the class of a condition; a condition of your own is one more row."""


def describe(condition: Condition) -> dict[str, Any]:
    """Return a condition as plain JSON values, `kind` among them.

    Raises:
      ValueError: its class is not in `KINDS`.
    """
    for kind, made in KINDS.items():
        if type(condition) is made:
            return {"kind": kind, **condition.description()}
    raise ValueError(f"{type(condition).__name__} is no kind of condition; known: {list(KINDS)}")


def from_description(values: Mapping[str, Any]) -> Condition:
    """Return the condition that `describe` was given.

    Raises:
      ValueError: an unknown kind.
    """
    fields = {name: value for name, value in values.items() if name != "kind"}
    return choose("condition", values["kind"], KINDS)(**fields)
