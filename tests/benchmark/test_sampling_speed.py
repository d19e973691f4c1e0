"""The benchmark counts what it says, and its ratios hold within one run; no absolute times."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import benchmark, models, samplers, times
from guidedflow.benchmark.workload import image_channels
from guidedflow.cli import main
from guidedflow.commands.bench import parser


def tiny(**fields):
    return models.create("tiny", **fields)


def test_dit_xl_2_takes_the_published_operations():
    """118.64 G multiply-adds at 256 pixels: Peebles & Xie 2023, table 1."""
    flops = benchmark.dit_flops(models.create("DiT-XL/2"))
    assert flops / 2e9 == pytest.approx(118.64, rel=2e-3)


def test_the_compiler_counts_what_the_formula_says():
    network = models.create("DiT-S/2", depth=1)
    work = benchmark.make_workload(network, batch=1, steps=1)
    counted = benchmark.counted_flops(work)
    # Softmax, normalisation and activations are counted too: a few operations a value.
    assert 1.0 <= counted / benchmark.dit_flops(network) < 1.03


@pytest.fixture(scope="module")
def work():
    return benchmark.make_workload(tiny(width=64, patch=1), batch=4, steps=8)


@pytest.mark.parametrize(
    ("mode", "count"),
    [
        ("none", 8),
        ("vmapped", 16),
        ("sequential", 16),
        ("interval", 13),
        ("outside", 8),
        ("reuse", 12),
    ],
)
def test_evaluations_are_those_that_the_model_is_called_for(work, mode, count):
    calls = []

    def model(x, t, cond):
        jax.debug.callback(lambda _: calls.append(1), cond)
        return 0.1 * x + cond[:, None, None, None]

    guided = benchmark.MODES[mode](model, 10)
    samplers.sample_ode(guided, work.noise, work.ts, work.labels, step=samplers.euler)
    jax.effects_barrier()
    assert len(calls) == count
    assert benchmark.evaluations(work, mode) == count


def test_ratios_within_one_run(work):
    """Two branches cost more than one, and no guidance anywhere costs no second branch."""
    figures = benchmark.bench(work, ["none", "vmapped", "outside", "interval"], repeats=9)
    ratio = {row["mode"]: row["times_unguided"] for row in figures["rows"]}
    assert ratio["none"]["median"] == 1
    # About 1 against about 2; a second branch outside the interval would make them equal.
    assert ratio["outside"]["median"] < 0.75 * ratio["vmapped"]["median"]
    # 8, 13 and 16 evaluations.
    least = {mode: min(taken) for mode, taken in figures["seconds"].items()}
    assert least["none"] < least["interval"] < least["vmapped"]
    assert figures["peak_flops"]["min"] > 0
    assert figures["workload"]["parameters"] > 0
    # What every job holds at least: parameters, noise and images.
    least = 4 * figures["workload"]["parameters"] + 2 * work.noise.nbytes
    for row in figures["rows"]:
        assert least <= row["memory"]["bytes"] < 10 * least
        assert "compiled program" in row["memory"]["from"]


def test_one_scan_is_not_slower_than_a_python_loop_of_compiled_steps(work):
    apply = image_channels(work.network)
    ts = times.uniform_grid(32)
    step = jax.jit(lambda p, x, t, h, y: x + h * apply(p, x, jnp.broadcast_to(t, y.shape), y))
    model = jax.tree_util.Partial(apply, work.params)

    def loop():
        x = work.noise
        for t, s in itertools.pairwise(ts):
            x = step(work.params, x, t, s - t, work.labels)
        return x.block_until_ready()

    def scan():
        return samplers.sample_ode(
            model, work.noise, ts, work.labels, step=samplers.euler
        ).block_until_ready()

    np.testing.assert_allclose(loop(), scan(), rtol=1e-4, atol=1e-4)
    seconds = benchmark.timed({"loop": loop, "scan": scan}, 9, lambda line: None)
    assert min(np.divide(seconds["scan"], seconds["loop"])) < 1


def test_a_second_job_of_every_mode_traces_nothing(work):
    """Other parameters, noise and labels, and wrappers built anew: one program a mode serves."""
    traced = []

    @jax.tree_util.Partial
    def network(x, t, labels):
        traced.append(1)
        return 0.1 * x + labels[:, None, None, None]

    def job(mode, seed):
        noise = jax.random.normal(jax.random.key(seed), work.noise.shape)
        guided = benchmark.MODES[mode](network, 10)
        return samplers.sample_ode(guided, noise, work.ts, work.labels + seed, step=samplers.heun)

    for mode in benchmark.MODES:
        job(mode, 0)
        before = len(traced)
        assert before
        job(mode, 1)
        assert len(traced) == before, mode


def test_the_command_writes_a_table_json_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    arguments = ["--preset=tiny", "--batch=2", "--steps=2", "--repeats=1", "--modes=none,vmapped"]
    assert main(["bench", *arguments, "--parts", f"--out={tmp_path}/new"]) == 0
    out, told = capsys.readouterr()
    # Of each way a first figure before the next is compiled.
    assert told.index("none: ") < told.index("steps/s in its first run") < told.index("compiling v")
    assert "vmapped" in out
    assert "whole less the sum" in out
    figures = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [row["mode"] for row in figures["rows"]] == ["none", "vmapped"]
    for name in ("bench.png", "parts.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_two_ways_are_measured_where_none_are_asked_for():
    assert parser().parse_args(["--preset=tiny"]).modes == "none,vmapped"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset=tinyy"], "did you mean 'tiny'"),
        (["--preset=tiny", "--solver=huen"], "did you mean 'heun'"),
        (["--preset=tiny", "--modes=vmaped"], "did you mean 'vmapped'"),
        (["--preset=tiny", "--batch=0"], "--batch must be at least 1"),
        (["--preset=tiny", "--batch=many"], "invalid int value"),
        (["--preset=tiny", "--dtype=float33"], "did you mean 'float32'"),
        (["--config=nowhere.py"], "there is no config file nowhere.py"),
        ([], "--preset=NAME or --config=FILE"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(arguments, says, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_what_the_branches_have_in_common_is_computed_once(work):
    """Image and time are those of both branches: vmapped, the patches are embedded once."""

    def operations(mode):
        guided = benchmark.MODES[mode](benchmark.model_of(work, work.params, work.labels, None), 10)
        t = jnp.full(work.batch, 0.5)
        return jax.jit(guided).lower(work.noise, t, work.labels).cost_analysis()["flops"]

    network = work.network
    tokens = work.batch * network.grid[0] * network.grid[1]
    embedding = 2 * tokens * network.patch**2 * network.channels * network.width
    assert operations("concatenated") - operations("vmapped") >= embedding


def test_tabulated_modulations_are_the_same_job(work):
    """Conditioning once for the whole grid gives the images of conditioning at each step."""

    def images(conditioning):
        job = dataclasses.replace(work, conditioning=conditioning)
        model = benchmark.model_of(job, job.params, job.labels, jnp.asarray(job.ts))
        guided = benchmark.MODES["vmapped"](model, 10)
        return samplers.sample_ode(guided, job.noise, job.ts, job.labels, step=samplers.euler)

    np.testing.assert_allclose(images("once"), images("each"), atol=2e-5)


def test_only_solvers_of_the_grid_take_a_table(capsys):
    arguments = ["bench", "--preset=tiny", "--conditioning=once", "--solver=rk4"]
    assert main(arguments) == 2
    assert "leaves the grid's times" in capsys.readouterr().err
