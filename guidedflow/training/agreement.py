"""Checks that a checkpoint belongs to this run and this model; errors name the first difference."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def check_identity(
    path: Path,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    override: Collection[str] = (),
) -> None:
    """Refuse a checkpoint of another run, naming the first field that differs.

    A field that the checkpoint lacks is not compared: the program got it after the checkpoint was written.

    Args:
      override: fields that may differ.
    Raises:
      ValueError: a field differs.
    """
    for name in sorted(found):
        ours, theirs = wanted.get(name), found.get(name)
        if name not in override and ours != theirs:
            if isinstance(ours, list) and isinstance(theirs, list):
                # Of a thousand class names, only the first that one side lacks is shown.
                ours, theirs = _missing(ours, theirs) or ours, _missing(theirs, ours) or theirs
            raise ValueError(
                f"{path} belongs to a run with {name}={_brief(theirs)}, this one has "
                f"{name}={_brief(ours)}; take that value or another workdir, or change it on "
                f"purpose with --override={name}"
            )


def _missing(of: list, there: list) -> list:
    """Return the first entries of one list that the other list lacks."""
    return [entry for entry in of if entry not in there][:3]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def check_structure(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raise if a checkpoint belongs to another model; the message names the first leaf that differs.

    Raises:
      ValueError: a leaf is missing or has another dtype or shape.
    """
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} is of another model: {name} is {found.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} here"
            )
