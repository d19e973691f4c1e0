"""Docstrings as Markdown: equations in print, every parameter in a row of its own."""

import re

import equations

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:")


def rewritten(text: str) -> str:
    """Return a docstring as Markdown."""
    lines = text.splitlines()
    ends = [i for i, line in enumerate(lines) if line.startswith((*SECTIONS, "Source:"))]
    start = ends[0] if ends else len(lines)
    return "\n\n".join([_description(lines[:start]), _sections(lines[start:])]).strip()


def _description(lines: list[str]) -> str:
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    return "\n\n".join(_paragraph(one.splitlines()) for one in paragraphs)


def _paragraph(lines: list[str]) -> str:
    if all(line.startswith("  ") for line in lines):
        shortest = min(len(line) - len(line.lstrip()) for line in lines)
        bare = [line[shortest:] for line in lines]
        if equations.is_equation(bare):
            return equations.to_html(bare)
        return "\n".join(["```text", *bare, "```"])
    if equations.is_equation(lines):
        return equations.to_html(lines)
    return "\n".join(map(escaped, lines))


def _sections(lines: list[str]) -> str:
    """Give every parameter a row of its own, and the source a paragraph."""
    result: list[str] = []
    section, source = "", False
    entry: list[str] = []

    def close() -> None:
        head, colon, rest = entry[0].partition(":") if entry else ("", "", "")
        names = [name.strip() for name in head.split(",")]
        plain = colon and all(name.isidentifier() for name in names)
        for name in names if plain and section in ("Args:", "Attributes:") else []:
            result.extend([escaped(f"  {name}:{rest}"), *map(escaped, entry[1:])])
        if not (plain and section in ("Args:", "Attributes:")):
            result.extend(map(escaped, entry))
        entry.clear()

    for line in lines:
        if line.startswith("Source:"):
            close()
            section, source = "", True
            result += ["", "**Source:**" + escaped(line.removeprefix("Source:"))]
        elif line in SECTIONS:
            close()
            section, source = line, False
            result += ["", line]
        elif source or not line.startswith("  "):
            close()
            if line.strip() and not source and section:
                section = ""
                result.append("")
            result.append(escaped(line.strip()))
        elif line.startswith("   ") and entry:
            entry.append(line)
        else:
            close()
            entry.append(line)
    close()
    return "\n".join(result)


def escaped(line: str) -> str:
    """Return a line whose asterisks and angles are themselves; code and *emphasis* stay."""
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        part = re.sub(r"(?<![\w*])\*(\w[\w-]*)\*(?![\w*])", "\x00\\1\x00", parts[i])
        part = part.replace("*", "\\*").replace("<", "&lt;")
        parts[i] = part.replace("\x00", "*")
    return "".join(parts)
