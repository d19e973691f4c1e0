"""The docs site's own code: equations, docstrings, the gallery and the check of its links."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from guidedflow.training import config_reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def load(monkeypatch):
    """Return a loader of the modules of docs/, which are no package."""
    monkeypatch.syspath_prepend(str(DOCS))

    def one(name):
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return one


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("x_t = alpha(t) data", "<i>x</i><sub><i>t</i></sub> = <i>α</i>(<i>t</i>) data"),
        ("beta_min <= 2", "<i>β</i><sub>min</sub> ≤ 2"),
        ("d <- e^(-2 u)", "<i>d</i> ← <i>e</i><sup>-2 <i>u</i></sup>"),
        ("dx_t/dt = 1", "dx<sub><i>t</i></sub>/dt = 1"),
        ("C^1/2 = grad_x log_prob", "<i>C</i><sup>1/2</sup> = ∇<sub><i>x</i></sub> log_prob"),
        ("v = a & b < c", "<i>v</i> = <i>a</i> &amp; <i>b</i> &lt; <i>c</i>"),
        ("w = 1.  Ho & Salimans 2022, appendix D.", "<i>w</i> = 1.  Ho &amp; Salimans 2022, appendix D."),
    ],
)  # fmt: skip
def test_an_equation_is_shown_as_in_print(load, plain, shown):
    assert load("equations").to_html([plain]) == f'<div class="equation">{shown}</div>'


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("guided = u + w (c - u),   c = model(x, t, cond)", True),
        ("mean <- mean + s variance", True),
        ("w = 1 is the conditional model, and w > 1 guides: it is not the null model.", False),
        ("Data plus falling noise: alpha = 1.", False),
        ("Return `x` = 1.", False),
        ("| a | b = 1 |", False),
        ("no relation at all", False),
    ],
)
def test_equations_are_told_from_sentences(load, line, is_one):
    assert load("equations").is_equation([line]) is is_one


def test_a_docstring_keeps_its_words_and_parameters(load):
    text = load("docstrings").rewritten(
        "Say (x: b *d, t: b *d) what *rule* holds.\n\nx_t = y.\n\n  command --one\n\nArgs:\n"
        "  low, high: ends, x < y,\n    in order.\n  t: time.\nRaises:\n  ValueError: no.\n"
        "Source: Ho 2020,\n  eq. 4."
    )
    assert "(x: b \\*d, t: b \\*d) what *rule* holds." in text
    assert '<div class="equation">' in text
    assert "```text\ncommand --one\n```" in text
    for name in ("low", "high"):
        assert f"  {name}: ends, x &lt; y,\n    in order." in text
    assert re.search(r"\n\n\*\*Source:\*\* Ho 2020,\neq. 4.$", text)


def test_the_home_page_leads_where_the_readme_does(load):
    text = load("hooks").home()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists() or (ROOT / target).exists(), target


def test_the_gallery_lists_every_method_of_the_readme_and_shows_it(load):
    hooks = load("hooks")
    tables = hooks.rows_of((ROOT / "README.md").read_text())
    assert len(tables) == len(hooks.GALLERY)
    lines = hooks.gallery().splitlines()
    for heading, (_, *rows) in tables.items():
        for row in rows:
            (line,) = [line for line in lines if line.startswith(f"| {row[0]} | {row[1]} |")]
            *_, above, more, _ = line.split("|")
            # Training, and what is no solver, is not drawn panel by panel.
            drawn = "distillation." not in row[1] and (
                "uidance" in heading or "samplers.s" in row[1] or "samplers.a" in row[1]
            )
            assert above.strip() or more.strip() or not drawn, row
    for target in re.findall(r"\((experiments/[\w.]+)\)", "\n".join(lines)):
        assert (ROOT / target).exists(), target


def test_the_reference_shows_every_field_of_a_config(load):
    text = load("hooks").reference()
    for field in config_reference.fields():
        assert f"`{field.name}`" in text


def test_a_link_that_leads_nowhere_is_found(load, tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><script src="https://example.org/x.js"></script>'
        '<a href="#self">5</a><p id="self"></p>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="none.png">')
    assert load("check_site").faults(tmp_path) == [
        "a.html: b.html#gone names no anchor",
        "a.html: c.html leads nowhere",
        "a.html: loads https://example.org/x.js from outside",
        "b.html: none.png leads nowhere",
    ]
