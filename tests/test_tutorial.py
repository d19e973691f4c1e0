"""The tutorial's commands, one after another, at tiny sizes: from pictures to guided samples."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from guidedflow import cli

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:] for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()
]
NETWORK = ["--config.network.preset=tiny", "--config.network.depth=1"]
# What makes a command small: the options that go before it, in place of its own.
SMALL = {
    "configs": [],
    "train": [
        *NETWORK,
        "--config.network.patch=4",
        "--config.dataset.image_size=8",
        "--config.steps=2",
        "--config.batch=8",
        "--config.optimizer.warm_up=1",
        "--config.sample.every=0",
        "--config.log.tensorboard=False",
    ],
    "sample": ["--steps=2", "--each=2"],
    "evaluate": ["--steps=1", "--scales=2", "--images=16"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the pictures that the tutorial's script draws, a few of them."""
    (script,) = [text for kind, text in BLOCKS if kind == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    exec(script.replace("300", "6").replace('"test", 40', '"test", 6'), {})
    return tmp_path


def shortened(words):
    """A command with its own sizes replaced by small ones."""
    name, *options = words
    small = {one.partition("=")[0]: one for one in SMALL[name]}
    if "--resume" in options:
        small = {"--config.steps": "--config.steps=3"}
    kept = [one for one in options if one.partition("=")[0] not in small]
    return [name, *kept, *small.values()]


def test_the_commands_lead_from_pictures_to_samples(folder, capsys):
    for words in COMMANDS:
        assert cli.main(shortened(words)) == 0, (words, capsys.readouterr().err)
    made = {path.name for path in folder.iterdir()}
    assert {"unguided.png", "guided.png", "interval.png", "apg.png"} <= made
    archive = np.load(folder / "two-classes.npz")
    assert archive["arr_0"].shape == (4, 8, 8, 3)
    assert sorted(set(archive["labels"].tolist())) == [0, 2]
    assert "resumed from step 2" in capsys.readouterr().out
    scores = folder / "runs" / "pictures" / "evaluation"
    assert {"scores.json", "scores.png", "grid.png"} <= {path.name for path in scores.iterdir()}


def test_every_command_of_the_program_that_the_text_needs_is_tried():
    assert {words[0] for words in COMMANDS} == set(SMALL)
