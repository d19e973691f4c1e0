"""The recipes of docs/architecture.md, carried out: own rule, sampler, network, data set and task."""

import re
from pathlib import Path

import numpy as np
import pytest

from guidedflow import cli, data, models, pipelines
from guidedflow.training import config as configs
from guidedflow.training import load, loop, tasks

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCKS = dict(re.findall(r"### A (\w+ ?\w*)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
TABLES = {
    "guidance rule": (pipelines.GUIDANCE, "clipped"),
    "sampler": (pipelines.SOLVERS, "ralston"),
    "network": (models.PRESETS, "mixer"),
    "data set": (data.SOURCES, "stripes"),
    "task": (tasks.TASKS, "robust"),
}


@pytest.fixture(scope="module")
def recipes():
    """Every block run as a file of its own; the tables are left as they were."""
    for name in TABLES:
        exec(compile(BLOCKS[name], f"recipe: {name}", "exec"), {"__name__": name})
    yield
    for table, key in TABLES.values():
        del table[key]


@pytest.fixture(scope="module")
def run(recipes, tmp_path_factory):
    """Trained by the task of a recipe: its network on its data."""
    config = configs.defaults()
    config.task, config.network.preset, config.dataset.name = "robust", "mixer", "stripes"
    config.dataset.held_out = ""
    config.steps, config.batch, config.optimizer.warm_up = 200, 16, 1
    config.optimizer.learning_rate = 1e-2
    config.log.every, config.log.tensorboard, config.sample.every = 100, False, 0
    config.parallel.strategy = "data"
    folder = tmp_path_factory.mktemp("recipes") / "run"
    loop.train(config, folder, display=False)
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_takes_less_than_forty_lines_and_one_row(name):
    assert len(BLOCKS[name].splitlines()) < 40


def test_what_the_recipes_made_draws_its_classes(run, tmp_path):
    """By the program, classes by name: each image has the stripes that were asked for."""
    file = tmp_path / "stripes.npz"
    given = [f"--workdir={run}", "--labels=down,across", "--each=2", "--scale=1.5", "--steps=8"]
    assert (
        cli.main(["sample", *given, "--solver=ralston", "--guidance=clipped", f"--out={file}"]) == 0
    )
    with np.load(file) as archive:
        images, labels = archive["arr_0"].astype(float), archive["labels"]
    assert labels.tolist() == [1, 0, 1, 0]
    down = images.std(axis=1).mean(axis=(1, 2)) < images.std(axis=2).mean(axis=(1, 2))
    assert down.tolist() == [True, False, True, False]


def test_a_clipped_rule_is_classifier_free_guidance_where_nothing_is_clipped(recipes, run):
    """The velocities of a class and of no class differ by less than 1 at a small scale of noise."""
    bundle = load.load(run)
    plain, clipped = (
        pipelines.sample(bundle, [0, 1], pipelines.Method(scale=1.0, steps=2, guidance=name))
        for name in ("classifier-free", "clipped")
    )
    np.testing.assert_allclose(plain, clipped, atol=1e-5)
