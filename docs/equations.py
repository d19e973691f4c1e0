"""The equations of docstrings as HTML: Greek letters, indices, powers and relations as in print.

Docstrings write them in plain characters, as `x_t = alpha(t) data + sigma(t) noise`, which reads well in an
editor. A page shows what they stand for. Nothing is left out: the words and their order stay.
"""

import html
import re

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ",
    "lambda": "λ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
}  # fmt: skip
OPERATORS = {
    "integral": "∫", "prod": "∏", "sum": "∑", "sqrt": "√", "grad": "∇", "<-": "←", "->": "→",
    "<=": "≤", ">=": "≥", "+-": "±", "!=": "≠", "inf": "∞", "~": "∼",
}  # fmt: skip
# Words that an equation does not hold more than one of a line.
PROSE = frozenset(
    {
        "a", "an", "the", "is", "are", "was", "be", "it", "its", "that", "which", "this",
        "where", "when", "as", "at", "by", "for", "from", "in", "into", "has", "have", "with",
        "and", "or", "not", "no", "only", "so", "to", "than", "then", "each", "every", "under",
        "over", "one",
    }
)  # fmt: skip
# An equation, and perhaps its source after a gap, as in "x = y.  Ho et al. 2020, eq. 4."
CITATION = re.compile(r"(.*?)(?:(\s{2,})([A-Z][\w-]+ (?:et al\.|& ).*))?$")
RELATION = re.compile(r"(?<![<>=!])(=|<-|->|≈|∝|~)(?!=)")


def is_equation(paragraph: list[str]) -> bool:
    """Whether the lines of a paragraph are an equation on lines of its own, and not a sentence."""
    text = " ".join(paragraph)
    if len(paragraph) > 6 or "`" in text or re.match(r"[|#>-]|[A-Z][a-z]+\b[ :,]", text):
        return False
    words = re.findall(r"(?<![\w(])[a-z]+(?![\w(])", text)
    prose = sum(word in PROSE for word in words)
    return bool(RELATION.search(paragraph[0])) and prose <= len(paragraph)


def to_html(lines: list[str]) -> str:
    """Return an equation's lines as one block of HTML."""
    return '<div class="equation">' + "\n".join(map(_line, lines)) + "</div>"


def _line(line: str) -> str:
    equation, gap, source = CITATION.match(line).groups("")
    return _printed(equation) + html.escape(gap + source, quote=False)


def _printed(line: str) -> str:
    # Relations first: they hold characters that HTML escapes.
    for plain, sign in OPERATORS.items():
        pattern = rf"(?<![A-Za-z]){plain}(?![A-Za-z])" if plain.isalpha() else re.escape(plain)
        line = re.sub(pattern, sign, line)
    for word, letter in GREEK.items():
        line = re.sub(rf"(?<![A-Za-z]){word}(?![A-Za-z])", letter, line)
    line = re.sub(r"(?<!\w)([a-zα-ω])_bar", "\\1\u0304", line)
    line = re.sub(r"(?<=[\w)\]]) \* (?=[\w(\[])", " · ", line)
    line = html.escape(line, quote=False)
    base = "(?<![A-Za-zα-ω])(d?[A-Za-zα-ω∇∑∏∫]\u0304?'?)"
    line = re.sub(rf"{base}_(\w+|\([^()]*\))", r"\1<sub>\2</sub>", line)
    line = re.sub(r"\^(-?\d+/\d+|-?\w+|\([^()]*\))", _power, line)
    return re.sub("(?<![\\w<&/])([a-zA-Zα-ω]\u0304?)(?![\\w;>])", r"<i>\1</i>", line)


def _power(found: re.Match[str]) -> str:
    inner = found.group(1)
    return f"<sup>{inner[1:-1] if inner.startswith('(') else inner}</sup>"
