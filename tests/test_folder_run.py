"""A folder of thirty pictures: trained, resumed, changed on purpose, and begun from, by the program."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from guidedflow import cli
from guidedflow.training import metrics, workdir
from guidedflow.training.checkpoint import path_of, read_record, steps_in
from guidedflow.training.load import load_bundle
from guidedflow.training.state import leaf_names

QUIET = [
    "--config.dataset.image_size=8",
    "--config.network.width=16",
    "--config.network.depth=1",
    "--config.network.heads=2",
    "--config.batch=8",
    "--config.log.every=1",
    "--config.log.tensorboard=False",
    "--config.sample.every=0",
    "--config.parallel.strategy=data",
]
STEPS = 4


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name in ("circle", "square", "stripes"):
        (folder / name).mkdir()
        for number in range(10):
            pixels = draw.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def origin(pictures, tmp_path_factory):
    """A run of the folder's config, which nothing else changes."""
    run = tmp_path_factory.mktemp("runs") / "origin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        name = f"--config.dataset.name=folder:{pictures}"
        given = ["--config=folder", name, f"--workdir={run}", f"--config.steps={STEPS}", *QUIET]
        assert cli.main(["train", *given]) == 0
    return run


@pytest.fixture
def run(origin, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(origin, tmp_path / "run")


def rates(run):
    return [r["learning_rate"] for r in metrics.read(run / "metrics.jsonl") if "learning_rate" in r]


def resume(run, *options):
    return cli.main(["train", f"--workdir={run}", "--resume", *options])


def newest(run):
    folder = workdir.checkpoints(run)
    return read_record(path_of(folder, steps_in(folder)[-1]))


def refused(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_a_folder_trains_from_its_config_and_holds_one_picture_in_ten_out(origin):
    records = metrics.read(origin / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1))
    assert np.isfinite([r["held_out_loss"] for r in records if "held_out_loss" in r]).all()
    assert newest(origin).identity["dataset.length"] == 27


def test_classes_are_asked_for_by_the_names_of_their_folders(origin, tmp_path):
    file = tmp_path / "two.npz"
    given = ["--labels=stripes,circle", "--each=2", "--steps=1", "--scale=1", f"--out={file}"]
    assert cli.main(["sample", f"--workdir={origin}", *given]) == 0
    assert sorted(np.load(file)["labels"].tolist()) == [0, 0, 2, 2]


def test_an_unknown_class_is_refused_with_the_nearest(origin, tmp_path, capsys):
    out = f"--out={tmp_path / 'x.png'}"
    line = refused(capsys, "sample", f"--workdir={origin}", "--labels=circel", out)
    assert "did you mean 'circle'" in line
    assert not list(tmp_path.iterdir())


def test_more_steps_keep_the_schedule_and_what_is_held_out_may_change(run):
    """After the end of the cosine the rate stays: 0.01 of its peak."""
    assert resume(run, f"--config.steps={STEPS + 2}", "--config.dataset.held_out=") == 0
    np.testing.assert_allclose(rates(run)[STEPS:], 0.01 * 1e-3, rtol=1e-5)
    assert len(rates(run)) == STEPS + 2
    config = workdir.read_config(run)
    assert (config["optimizer"]["decay_steps"], config["dataset"]["held_out"]) == (STEPS, "")


def test_a_run_older_than_the_field_keeps_the_end_that_it_had(run, pictures):
    """Before, the cosine ended at the last step, and neither config nor identity said so."""
    raw = workdir.read_config(run)
    del raw["optimizer"]["decay_steps"]
    workdir.write_config(run, raw)
    assert resume(run, f"--config.steps={STEPS + 1}") == 0
    assert rates(run)[-1] == pytest.approx(0.01 * 1e-3)
    name = f"--config.dataset.name=folder:{pictures}"
    sizes = [*QUIET, f"--config.steps={STEPS + 2}"]
    assert resume(run, "--config=folder", name, *sizes) == 0
    assert rates(run)[-1] == pytest.approx(0.01 * 1e-3)


def test_fields_change_on_purpose_and_the_history_keeps_what_they_were(run, capsys):
    steps = f"--config.steps={STEPS + 1}"
    changed = ["--config.optimizer.learning_rate=0.5", "--config.batch=12"]
    line = refused(capsys, "train", f"--workdir={run}", "--resume", steps, *changed)
    assert "--override=batch" in line
    both = "--override=optimizer.learning_rate,batch"
    assert resume(run, steps, *changed, both) == 0
    shown = [one for one in capsys.readouterr().out.splitlines() if "history.jsonl" in one]
    assert len(shown) == 1
    assert "optimizer.learning_rate 0.001 -> 0.5, batch 8 -> 12" in shown[0]
    history = [json.loads(one) for one in (run / "history.jsonl").read_text().splitlines()]
    told = [(one["step"], one["field"], one["old"], one["new"]) for one in history]
    assert told == [(STEPS, "optimizer.learning_rate", 0.001, 0.5), (STEPS, "batch", 8, 12)]
    assert rates(run)[-1] == pytest.approx(0.01 * 0.5)
    assert newest(run).identity["batch"] == 12
    # The same command again, as a scheduler gives it, changes nothing more.
    assert resume(run, steps, *changed, both) == 0
    assert len((run / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--resume", "--override=batchs"], "did you mean 'batch'"),
        (["--resume", "--override=steps"], "free to change needs no --override"),
        (["--config=folder", "--override=batch"], "--override goes with --resume"),
        (["--config=folder", "--rename=a:b"], "--rename goes with --init_from"),
        (["--resume", "--rename=ab"], "--rename takes old:new, got 'ab'"),
        (["--resume", "--config.network.multipliers=1,2"], "small has no such field"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_changes_nothing(run, capsys, options, says):
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert says in refused(capsys, "train", f"--workdir={run}", *options)
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_a_run_begins_with_the_parameters_of_another(origin, pictures, tmp_path, capsys):
    """A rate of 0 leaves them as they were taken, and the average all but; other shapes are fresh."""
    run = tmp_path / "next"
    name = f"--config.dataset.name=folder:{pictures}"
    given = ["--config=folder", name, *QUIET, "--config.steps=1", "--config.network.patch=2"]
    still = ["--config.optimizer.learning_rate=0.0", "--config.ema.decay=0.99999"]
    still += ["--config.ema.warm_up=False", f"--init_from={origin}", f"--workdir={run}"]
    assert cli.main(["train", *given, *still]) == 0
    out = capsys.readouterr().out
    assert "of another shape, fresh: 3: " in out
    for ema in (True, False):
        trees = [load_bundle(folder, ema=ema).params for folder in (origin, run)]
        there, here = (leaf_names(jax.device_get(tree)) for tree in trees)
        fits = [name for name in here if here[name].shape == there[name].shape]
        assert len(fits) == len(here) - 3
        for name in fits:
            np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-6, err_msg=name)
    (line,) = (run / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["new"] == str(origin)


def test_a_run_of_which_nothing_fits_is_refused_and_leaves_nothing(
    origin, pictures, tmp_path, capsys
):
    run = tmp_path / "next"
    given = ["--config=folder", f"--config.dataset.name=folder:{pictures}", f"--workdir={run}"]
    line = refused(capsys, "train", *given, f"--init_from={origin}", *UNET)
    assert "no parameter fits by name and shape" in line
    line = refused(capsys, "train", *given, *QUIET, f"--init_from={origin}", "--rename=blocs_0:x")
    assert "has no parameter 'blocs_0'" in line
    assert "did you mean 'blocks_0" in line
    assert not run.exists()


UNET = [
    "--config.dataset.image_size=8",
    "--config.network.preset=UNet-S",
    "--config.network.width=8",
    "--config.network.multipliers=1,2",
    "--config.network.blocks=1",
    "--config.network.attend=()",
    "--config.batch=8",
]
