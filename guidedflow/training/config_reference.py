"""The meaning of each config field, read from the comments in `config.defaults`.

Fields are explained only in these comments. `guidedflow train --help` and the docs page print them.
"""

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("config.py")


class Field(NamedTuple):
    """One field: its full name, its default as written in the source, and its comment."""

    name: str
    default: str
    comment: str


def fields(source: str | None = None) -> list[Field]:
    """Return every field of `defaults()`, in its order.

    A field's comment is on its line, or on the comment lines above it. A comment on the line that opens
    a section belongs to the section, which is a `Field` with an empty default.

    Args:
      source: source text of a module with `defaults`; by default that of guidedflow.training.config.
    """
    source = SOURCE.read_text() if source is None else source
    comments = {
        token.start[0]: (
            token.string.removeprefix("#").strip(),
            not token.line[: token.start[1]].strip(),
        )
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def comment_of(line: int) -> str:
        beside, alone = comments.get(line, ("", True))
        if not alone:
            return beside
        above: list[str] = []
        while (line := line - 1) in comments and comments[line][1]:
            above.insert(0, comments[line][0])
        return " ".join(above)

    def walk(node: ast.Dict, prefix: str) -> Iterator[Field]:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                continue
            name = prefix + ast.literal_eval(key)
            section = isinstance(value, ast.Dict)
            yield Field(name, "" if section else _default(value), comment_of(key.lineno))
            if isinstance(value, ast.Dict):
                yield from walk(value, f"{name}.")

    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "defaults"
    ]
    outer = next(node for node in ast.walk(function) if isinstance(node, ast.Dict))
    return list(walk(outer, ""))


def _default(value: ast.expr) -> str:
    """Return a default as written in the source; for a field without a value, its type."""
    if isinstance(value, ast.Call):
        return f"unset ({ast.unparse(value.args[0])})"
    return ast.unparse(value)


def _sections(given: Sequence[Field]) -> dict[Field, list[Field]]:
    """Return every section with its fields; fields without a section come first."""
    sections: dict[Field, list[Field]] = {Field("", "", ""): []}
    sections |= {field: [] for field in given if not field.default}
    by_name = {section.name: members for section, members in sections.items()}
    for field in given:
        if field.default:
            by_name[field.name.rpartition(".")[0]].append(field)
    return sections


def as_text(given: Sequence[Field]) -> str:
    """Return the fields as command-line flags, each with its comment below."""
    lines = []
    for section, members in _sections(given).items():
        if section.name:
            lines.append(f"\nconfig.{section.name}: {section.comment}")
        for one in members:
            lines.append(f"  --config.{one.name}  (default {one.default})")
            lines += textwrap.wrap(
                one.comment, 90, initial_indent="      ", subsequent_indent="      "
            )
    return "\n".join(lines)


def as_markdown(given: Sequence[Field]) -> str:
    """Return the fields as Markdown tables, one per section."""
    lines = []
    for section, members in _sections(given).items():
        if section.name:
            lines.append(f"\n## `{section.name}`\n\n{section.comment}\n")
        lines += ["| field | default | meaning |", "|---|---|---|"]
        for one in members:
            comment = one.comment.replace("|", "\\|")
            lines.append(f"| `{one.name}` | `{one.default}` | {comment} |")
    return "\n".join(lines) + "\n"
