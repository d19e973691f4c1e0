"""Sampling and evaluation of a trained run, from the tables of names to the files of the program."""

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known import bundle_of
from PIL import Image

from guidedflow import cli, paths, pipelines
from guidedflow.pipelines import Method, methods
from guidedflow.samplers import scan
from guidedflow.training import config as configs
from guidedflow.training import load, workdir
from guidedflow.training.build import build
from guidedflow.training.checkpoint import Checkpointer, Keep

# With one batch size and grid, all runs of the program share one compiled sampler.
SHARED = ["--steps=2", "--batch=12"]


def _field(x, t, cond):
    """A velocity that pulls class c towards the constant image c / 10, and class 10 towards 0."""
    target = jnp.where(cond == 10, 0.0, cond / 10)
    remaining = jnp.maximum(1 - t, 1e-3)
    return (target[:, None, None, None] - x) / remaining[:, None, None, None]


@pytest.fixture(scope="module")
def exact():
    """A run whose network is known: at w = 1 the sample of class c is the constant c / 10."""
    return bundle_of(_field)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with one checkpoint of an untrained network, whose average differs from it."""
    folder = tmp_path_factory.mktemp("run")
    config = configs.defaults()
    config.network.preset, config.network.depth, config.batch = "tiny", 1, 16
    config.dataset.held_out = "test"
    setup = build(config)
    state = jax.jit(setup.init)(jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, state.ema)
    saver = Checkpointer(
        workdir.checkpoints(folder), setup.identity, configs.resolved(config), Keep()
    )
    saver.save(state._replace(ema=moved))
    saver.wait()
    workdir.write_config(folder, configs.resolved(config))
    workdir.write_examples(folder, setup.dataset)
    return folder


def program(capsys, *arguments):
    """Run the program; return its exit code, and what it printed."""
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


# No variance is learnt here.
@pytest.mark.parametrize("solver", sorted(set(methods.SOLVERS) - {"ddpm-learned"}))
def test_every_named_solver_reaches_the_class_asked_for(exact, solver):
    labels = [0, 5, 9]
    images = pipelines.sample(exact, labels, Method(solver=solver, steps=64))
    # The slowest is Euler's order one with fresh noise in every step: 1 / 64 and some.
    means = images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, np.asarray(labels) / 10, atol=0.1, err_msg=solver)


@pytest.mark.parametrize("name", sorted(set(methods.GUIDANCE) - {"none", "plus-plus"}))
def test_every_named_guidance_at_one_is_the_conditional_model(exact, name):
    plain = pipelines.sample(exact, [3, 7], Method(guidance="none", steps=8))
    guided = pipelines.sample(exact, [3, 7], Method(guidance=name, steps=8))
    if name in ("zero-star", "dynamic-threshold"):  # these change more than the scale
        assert guided.shape == plain.shape
        assert np.all(np.isfinite(guided))
    else:
        np.testing.assert_allclose(guided, plain, atol=1e-5)


def test_guidance_extrapolates_from_the_null_class(exact):
    # Both fields pull straight to their constant, so the guided one pulls to null + w (cond - null).
    for w in (0.0, 1.0, 2.0, 3.5):
        image = pipelines.sample(exact, [4], Method(scale=w, steps=16, solver="euler"))
        np.testing.assert_allclose(image, w * 0.4, atol=1e-4)


def test_an_empty_interval_of_guidance_is_none(exact):
    inside = pipelines.sample(exact, [4], Method(scale=3.0, interval=(0.01, 0.02), steps=16))
    np.testing.assert_allclose(inside, pipelines.sample(exact, [4], Method(steps=16)), atol=1e-6)


@pytest.mark.parametrize("grid", sorted(methods.GRIDS))
def test_every_named_grid_runs_to_the_data(grid):
    ts = methods.GRIDS[grid](8, paths.Linear())
    assert ts.shape == (9,)
    assert ts[-1] == 1
    assert np.all(np.diff(ts) > 0)


@pytest.mark.parametrize("solver", ["heun", "ddpm"])
def test_an_image_depends_on_seed_and_index_alone(exact, solver):
    labels, method = np.arange(10), Method(solver=solver, steps=4, scale=1.5)
    whole = pipelines.sample(exact, labels, method, seed=3, batch=16)
    pieces = pipelines.sample(exact, labels, method, seed=3, batch=4)
    np.testing.assert_allclose(whole, pieces, atol=1e-5)
    prefix = pipelines.sample(exact, labels[:3], method, seed=3, batch=4)
    np.testing.assert_allclose(whole[:3], prefix, atol=1e-5)


def test_the_seed_chooses_the_noise(exact):
    still = bundle_of(lambda x, t, cond: jnp.zeros_like(x))
    a, b, c = (pipelines.sample(still, [1, 1], Method(steps=1), seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
    assert np.abs(a[0] - a[1]).max() > 0.1


def test_a_sweep_over_scales_and_chunks_compiles_once(exact):
    pipelines.sample(exact, [1] * 8, Method(scale=2.0, steps=3), batch=4)
    before = scan._run._cache_size()
    for scale in (1.5, 3.0, 4.0):
        pipelines.sample(exact, [2] * 10, Method(scale=scale, steps=3), batch=4)
    assert scan._run._cache_size() == before


def test_progress_counts_every_image_once(exact):
    counts = []
    pipelines.sample(exact, [0] * 10, Method(steps=1), batch=4, progress=counts.append)
    assert counts == [4, 4, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: Method(solver="huen"), r"unknown solver 'huen' \(did you mean 'heun'\?\)"),
        (lambda run: Method(grid="uniforn"), "did you mean 'uniform'"),
        (lambda run: Method(guidance="cfg"), "unknown guidance 'cfg'; known"),
        (lambda run: Method(scale=float("nan")), "scale must be a finite number"),
        (lambda run: Method(steps=0), "steps must be a whole number of at least 1"),
        (lambda run: Method(scale=2, interval=(0.9, 0.1)), "interval is empty"),
        (lambda run: pipelines.sample(run, [10], Method()), "label 10 is out of range: .* 0 to 9"),
        (lambda run: pipelines.sample(run, [], Method()), "at least one"),
        (lambda run: pipelines.sample(run, [1], Method(), batch=0), "batch must be at least 1"),
    ],
)
def test_bad_input_is_named(exact, call, message):
    with pytest.raises(ValueError, match=message):
        call(exact)


def test_the_program_writes_a_grid_and_an_archive(run, tmp_path, capsys):
    common = [f"--workdir={run}", "--labels=0,1,2", "--scale=2", *SHARED]
    code, out, err = program(capsys, "sample", *common, f"--out={tmp_path / 'a.png'}", "--each=4")
    assert (code, err) == (0, "")
    assert str(tmp_path / "a.png") in out
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 100
    code, *_ = program(capsys, "sample", *common, f"--out={tmp_path / 'a.npz'}", "--each=4")
    assert code == 0
    archive = np.load(tmp_path / "a.npz")
    assert archive["arr_0"].shape == (12, 8, 8, 1)
    assert archive["arr_0"].dtype == np.uint8
    assert archive["labels"].tolist() == [0, 1, 2] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.png"]


def test_averaged_and_newest_parameters_differ(run):
    averaged, newest = (load.load(run, ema=ema) for ema in (True, False))
    for a, b in zip(jax.tree.leaves(averaged.model), jax.tree.leaves(newest.model), strict=True):
        if isinstance(a, jax.Array):
            np.testing.assert_allclose(a, b + 0.05, atol=1e-6)


def test_the_program_judges_a_run(run, tmp_path, capsys):
    code, out, _ = program(
        capsys,
        "evaluate",
        f"--workdir={run}",
        "--scales=2,3",
        "--images=40",
        *SHARED,
        f"--out={tmp_path}",
    )
    assert code == 0
    assert "accuracy" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "grid.png",
        "scores.json",
        "scores.png",
    ]
    raw = json.loads((tmp_path / "scores.json").read_text())
    assert [row["scale"] for row in raw["scales"]] == [2, 3]
    assert [row["count"] for row in raw["scales"]] == [40, 40]
    # What an untrained network draws is nothing like a digit, and real digits are.
    assert raw["scales"][0]["frechet_pixels"] > 10
    assert raw["real"]["accuracy"] > 0.97
    assert raw["real"]["frechet_pixels"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels=3,12"], "label 12 is out of range"),
        (["--labels=a"], "unknown class 'a'"),
        (["--labels=1,,2"], "expected labels as 0,1,2 or cat,dog, got '1,,2'"),
        (["--scale=big"], "expected a finite number, got 'big'"),
        (["--scale=inf"], "expected a finite number"),
        (["--solver=huen"], "did you mean 'heun'"),
        (["--steps=0"], "expected at least 1, got 0"),
        (["--interval=0.5"], "--interval takes two times"),
        (["--sclae=2"], "unrecognized arguments: --sclae=2"),
        (["--workdir=/nowhere/at/all"], "holds no run"),
        (["--process_count=2"], "--coordinator, --process_count and --process_index go together"),
        (["--out=grid.gif"], "must end in .png or .npz"),
        (["--out=/nowhere/grid.png"], "cannot write /nowhere/grid.png"),
    ],
)
def test_the_program_refuses_in_one_line(run, tmp_path, capsys, arguments, message):
    given = [f"--workdir={run}", f"--out={tmp_path / 'grid.png'}", *arguments]
    code, out, err = program(capsys, "sample", *given)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_workdir_without_a_checkpoint_is_said(run, tmp_path, capsys):
    workdir.write_config(tmp_path, workdir.read_config(run))
    for command in (["sample", f"--out={tmp_path / 'grid.png'}"], ["evaluate"]):
        code, _, err = program(capsys, *command, f"--workdir={tmp_path}")
        assert code == 2
        assert err.count("\n") == 1
        assert "holds no checkpoint yet" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize("name", ["grid.png", "samples.npz"])
def test_a_full_disk_leaves_no_file(run, tmp_path, capsys, monkeypatch, name):
    def fill(self_or_file, file=None, *_, **__):
        with open(file if file is not None and not np.ndim(file) else self_or_file, "wb") as half:
            half.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fill)
    monkeypatch.setattr(np, "savez", fill)
    given = [f"--workdir={run}", f"--out={tmp_path / name}", "--scale=2", *SHARED]
    code, _, err = program(capsys, "sample", *given)
    assert code == 2
    assert err == f"guidedflow: cannot write {tmp_path / name}: No space left on device\n"
    assert not list(tmp_path.iterdir())


def test_a_bundle_needs_no_data_and_a_run_of_before_finds_them(run, tmp_path, monkeypatch):
    """Without the file that says what the examples were, the run's data set says it."""
    from guidedflow import data

    older = tmp_path / "older"
    shutil.copytree(run, older)
    (older / workdir.EXAMPLES).unlink()
    raw = workdir.read_config(older)
    raw["network"]["products"] = raw["network"].pop("kernels")
    workdir.write_config(older, raw)
    found = load.load(older)
    monkeypatch.setattr(data, "load", None)
    bundle = load.load(run)
    assert bundle.condition == found.condition
    assert bundle.image_shape == found.image_shape == (8, 8, 1)
    assert bundle.network == found.network
