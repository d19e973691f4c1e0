"""Lookup of names: every string from a config or a command line becomes an object here."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, names: list[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `names`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return `table[name]`.

    Args:
      kind: what the table holds, for the message: "solver", "path", ...
      name: the name asked for.
      table: names to objects.
    Raises:
      ValueError: the name is not in the table; the message has the nearest name and all names.
    """
    if name not in table:
        hint = nearest(str(name), list(table))
        known = ", ".join(sorted(table))
        raise ValueError(f"unknown {kind} {name!r}{hint}; known: {known}")
    return table[name]
