"""Conditions to JSON and back: the table of kinds."""

from collections.abc import Callable, Mapping
from typing import Any

from guidedflow.conditions.condition import Condition
from guidedflow.conditions.images import Images
from guidedflow.conditions.labels import Labels
from guidedflow.conditions.named import Named
from guidedflow.conditions.numbers import Numbers
from guidedflow.conditions.prompts import Prompts
from guidedflow.registry import choose

KINDS: dict[str, Callable[..., Condition]] = {
    "labels": Labels,
    "numbers": Numbers,
    "prompts": Prompts,
    "images": Images,
    "named": Named,
}
"""Name in a file to the class of a condition; a condition of your own is one more row."""


def describe(condition: Condition) -> dict[str, Any]:
    """Return a condition as plain JSON values, `kind` among them.

    Raises:
      ValueError: its class is not in `KINDS`.
    """
    kind = _kind(condition)
    if kind is None:
        raise ValueError(
            f"{type(condition).__name__} is no kind of condition; known: {list(KINDS)}"
        )
    return {"kind": kind, **_plain(condition.description())}


def from_description(values: Mapping[str, Any]) -> Condition:
    """Return the condition that `describe` was given.

    Raises:
      ValueError: an unknown kind.
    """
    fields = {name: _made(value) for name, value in values.items() if name != "kind"}
    return choose("condition", values["kind"], KINDS)(**fields)


def _kind(value: Any) -> str | None:
    return next((kind for kind, made in KINDS.items() if type(value) is made), None)


def _plain(value: Any) -> Any:
    """Return JSON values with the conditions among them described."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value if _kind(value) is None else describe(value)


def _made(value: Any) -> Any:
    """Return JSON values with the descriptions among them made into conditions."""
    if not isinstance(value, Mapping):
        return value
    if "kind" in value:
        return from_description(value)
    return {name: _made(entry) for name, entry in value.items()}
