"""Configs are found by name and by path, in a checkout and in an installed package."""

import re
import shutil
from pathlib import Path

import pytest

from guidedflow import cli, config_files
from guidedflow.commands import train
from guidedflow.training import workdir
from guidedflow.training.config import defaults, resolved

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))


def test_a_name_and_a_path_give_the_same_config():
    assert config_files.load("digits") == config_files.load(CONFIGS / "digits.py")
    assert config_files.load("digits") != config_files.load("mnist")


def test_a_file_of_the_users_own_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIGS / "mnist.py", tmp_path / "digits")
    assert config_files.find("digits") == Path("digits")


def test_an_installed_package_holds_its_configs(tmp_path, monkeypatch):
    inside = tmp_path / "guidedflow" / "configs"
    inside.mkdir(parents=True)
    shutil.copy(CONFIGS / "digits.py", inside / "mine.py")
    monkeypatch.setattr(config_files, "__file__", str(inside.parent / "config_files.py"))
    assert list(config_files.descriptions()) == ["mine"]
    assert config_files.find("mine") == inside / "mine.py"


def test_the_command_lists_every_config_with_its_first_line(capsys):
    assert cli.main(["configs"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()[: len(NAMES)]
    assert [line.split()[0] for line in lines] == NAMES
    for name, line in zip(NAMES, lines, strict=True):
        first = (CONFIGS / f"{name}.py").read_text().splitlines()[0]
        assert line.split(maxsplit=1)[1] == first.removeprefix('"""')
    assert str(CONFIGS) in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digts", "no config of that name (did you mean 'digits'?)"),
        ("elsewhere/digits.py", "did you mean 'digits'?"),
        ("{tmp}/notes.txt", "a config file is a Python file"),
        ("{tmp}/empty.py", "must have a get_config()"),
    ],
)
def test_what_is_no_config_is_said(tmp_path, text, message):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty.py").touch()
    with pytest.raises(ValueError, match=re.escape(message)):
        config_files.load(text.format(tmp=tmp_path))


def test_a_run_goes_on_with_the_config_in_its_workdir(tmp_path):
    config = defaults()
    config.batch, config.log.profile = 48, (3, 4)
    workdir.write_config(tmp_path, resolved(config))
    values = train.parse([f"--workdir={tmp_path}", "--resume", "--config.log.every=7"])
    config.log.every = 7
    assert resolved(values.config) == resolved(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={tmp}"], "--config is missing"),
        (["--resume"], "--config is missing"),
        (["--workdir={tmp}", "--noresume"], "--config is missing"),
        (["--workdir={tmp}", "--resume=perhaps"], "resume"),
        (["--workdir={tmp}", "--resume"], "holds no run (no config.json)"),
    ],
)
def test_without_a_config_there_must_be_a_run_to_go_on_with(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train.parse([one.format(tmp=tmp_path) for one in arguments])
    assert not list(tmp_path.iterdir())
