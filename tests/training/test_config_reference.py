"""Every field of a config is explained beside it, and the explanation is found."""

import pytest

from guidedflow import cli
from guidedflow.training import config_reference
from guidedflow.training.config import defaults, leaves

EXAMPLE = """
def defaults():
    return Dict(
        {
            "one": 1,  # beside
            # above, over
            # two lines
            "two": hold(float),
            "section": {  # of things
                "three": "a | b",  # with "quotes" # and a hash
                "bare": None,
            },
            # not of the field below, which has its own
            "four": (0, 0),  # own
        }
    )
"""


def test_comments_are_found_beside_a_field_and_above_it():
    found = {field.name: field[1:] for field in config_reference.fields(EXAMPLE)}
    assert found == {
        "one": ("1", "beside"),
        "two": ("unset (float)", "above, over two lines"),
        "section": ("", "of things"),
        "section.three": ("'a | b'", 'with "quotes" # and a hash'),
        "section.bare": ("None", ""),
        "four": ("(0, 0)", "own"),
    }


def test_every_field_and_section_has_a_comment():
    bare = [field.name for field in config_reference.fields() if not field.comment]
    assert not bare


def test_the_fields_are_those_of_a_config():
    named = [field.name for field in config_reference.fields() if field.default]
    assert sorted(named) == sorted(name for name, _ in leaves(defaults()))


@pytest.mark.parametrize("form", [config_reference.as_text, config_reference.as_markdown])
def test_both_forms_show_every_field_with_its_comment(form):
    given = config_reference.fields(EXAMPLE)
    text = form(given)
    for field in given:
        assert field.name in text
        assert field.comment.replace("|", "\\|") in text or field.comment in text


def test_help_of_training_explains_every_field(capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert cli.main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for field in config_reference.fields():
        assert f"config.{field.name}" in said
        assert " ".join(field.comment.split()) in said


def test_a_bar_in_a_comment_splits_no_row():
    given = [config_reference.Field("name", "1", "a | b")]
    *_, row = config_reference.as_markdown(given).splitlines()
    assert row.replace("\\|", "").count("|") == 4
