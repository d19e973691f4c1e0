"""Training, parts, growth and batches: what they count and write; no absolute times."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import benchmark, models
from guidedflow.benchmark import counting, growth, parts, sampling, timing, training
from guidedflow.cli import main
from guidedflow.training import parallel
from guidedflow.training.registries import operations_for


def silent(line):
    pass


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture(scope="module")
def work():
    return benchmark.make_workload(models.create("tiny"), batch=4, steps=2)


@pytest.fixture(scope="module")
def block():
    """One block whose products outweigh the rest."""
    return benchmark.make_workload(
        models.create("tiny", width=64, patch=2, depth=1), batch=4, steps=1
    )


def test_the_training_step_keeps_what_was_there_and_counts_three_evaluations(block):
    before = jax.tree.map(np.asarray, block.params)
    figures = benchmark.bench_training(block, 1, silent, {})
    jax.tree.map(np.testing.assert_array_equal, block.params, before)
    # Parameters, average and two moments stay, and there are gradients.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(block.params))
    assert figures["memory"]["bytes"] > 4 * size
    assert figures["compile_seconds"] > 0
    # Products dominate, and the backward pass has two for each.
    assert 0.9 < figures["counted_over_formula"] < 1.6


@pytest.mark.parametrize("name", ["fsdp", "mesh"])
def test_strategies_train_over_all_devices(work, name):
    strategy = benchmark.strategy_of(name, (2, 2))
    step = training.step_of(work, strategy=strategy)
    step.run()
    assert strategy.mesh.devices.size == 4
    assert math.prod(parallel.fsdp_axes(strategy.mesh).values()) == {"fsdp": 4, "mesh": 2}[name]


def test_donated_buffers_are_counted_once():
    size = 4 * 1000
    for donate, held in ((), 2 * size), ((0,), size):
        step = jax.jit(lambda x: x + 1, donate_argnums=donate)
        compiled = step.lower(np.ones(1000, np.float32)).compile()
        assert held <= timing.program_bytes(compiled) < held + 500


def test_a_device_that_counts_is_believed(monkeypatch):
    counts = iter([100, 700, 700, 700])
    monkeypatch.setattr(timing, "device_peak", lambda: next(counts))
    assert timing.peak_memory(lambda: None, 5) == {"bytes": 700, "from": "the device's count"}
    # A run that stays below an earlier one's peak leaves no trace there.
    assert timing.peak_memory(lambda: None, 5)["bytes"] == 5


def test_where_the_compiler_counts_otherwise_the_formula_stands(block, monkeypatch):
    flops, about = benchmark.network_flops(block)
    assert flops == benchmark.counted_flops(block)
    assert "compiled" in about["flops_from"]
    monkeypatch.setattr(counting, "counted_flops", lambda work: 0.0)
    flops, about = benchmark.network_flops(block)
    assert flops == block.batch * benchmark.dit_flops(block.network)
    assert about["flops_from"].startswith("the formula")


def test_the_parts_hold_the_products_of_the_whole(block):
    """Each part's own operations, counted by the compiler, together are the network's."""
    network = block.network
    x = jnp.zeros((block.batch, 16, network.width))
    c = jnp.zeros((block.batch, network.width))
    # Embedders and the final layer are what a network without blocks has.
    total = block.batch * benchmark.dit_flops(network.clone(depth=0))
    for name in parts.BLOCK:
        module = parts.Repeated(network, name)
        variables = jax.eval_shape(module.init, jax.random.key(0), x, None, c)
        total += jax.jit(module.apply).lower(variables, x, None, c).cost_analysis()["flops"]
    assert 0.95 < total / benchmark.counted_flops(block) < 1.05


def test_other_networks_have_no_parts_and_do_not_grow():
    network = models.create("tiny-unet")
    work = benchmark.Workload(network, None, np.zeros((1, 8, 8, 1)), None, None, "euler")
    with pytest.raises(ValueError, match="parts of a DiT"):
        benchmark.bench_parts(work, 1, silent)
    with pytest.raises(ValueError, match="takes a DiT, got a UNet"):
        benchmark.bench_growth(network, 1, 1, "euler", "none", 1, silent)


def test_growth_varies_one_quantity_at_a_time():
    network = models.create("tiny", depth=1)
    varied = growth.jobs(network, batch=2, steps=4, solver="euler", factors=(1.0, 2.0))
    for place, (quantity, points) in enumerate(varied.items()):
        assert quantity == growth.QUANTITIES[place]
        assert len(points) == 2
        for value, work in points:
            wanted = [2, 4, 1, 4]
            wanted[place] = value
            assert growth.size_of(work) == tuple(wanted)
            assert sum(name.startswith("blocks") for name in work.params) == work.network.depth


def test_the_fit_finds_a_line_and_a_parabola():
    line = growth.fitted([1, 2, 4], [5.0, 7.0, 11.0])
    assert line["coefficients"] == pytest.approx([2, 3])
    assert line["r_squared"] == pytest.approx(1)
    curve = growth.fitted([1, 2, 4, 8], [1 + v + 2 * v**2 for v in (1, 2, 4, 8)], 2)
    assert curve["coefficients"] == pytest.approx([2, 1, 1])
    assert growth.fitted([1, 2, 3, 4], [1.0, 5.0, 1.0, 5.0])["r_squared"] < 0.5


def test_the_command_sweeps_batches(tmp_path):
    common = ["--preset=tiny", "--steps=1", "--repeats=1", "--modes=none", f"--out={tmp_path}"]
    assert main(["bench", *common, "--batches=1,2"]) == 0
    figures = json.loads((tmp_path / "batches.json").read_text())
    assert [one["workload"]["batch"] for one in figures["sweep"]] == [1, 2]
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_growth(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth.jobs, "__defaults__", ((0.5, 1.0),))
    monkeypatch.setattr(growth.bench_growth, "__defaults__", ((0.5, 1.0),))
    options = ["--preset=tiny", "--batch=2", "--steps=2", "--repeats=1", "--modes=none", "--grow"]
    assert main(["bench", *options, f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "growth.json").read_text())
    assert set(figures["growth"]) == set(growth.QUANTITIES)
    for quantity, one in figures["growth"].items():
        assert f"seconds over {quantity}" in out
        # Twice the steps are twice the operations; the limit is theirs alone.
        assert len(one["limit"]) == len(one["seconds"]) == len(one["values"]) == 2
    steps = figures["growth"]["steps"]
    assert steps["limit"][1] == pytest.approx(2 * steps["limit"][0])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strategy=pmapp"], "did you mean 'pmap'"),
        (["--strategy=mesh", "--mesh=4"], "--mesh takes data x fsdp"),
        (["--strategy=data", "--batch=3"], "a batch of 3 does not divide over 4 devices"),
        (["--batches=1,x"], "--batches takes whole numbers"),
        (["--batches=0"], "--batches must be at least 1"),
    ],
)
def test_bad_options_are_one_line(arguments, says, capsys):
    assert main(["bench", "--preset=tiny", "--steps=1", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_unknown_kernels_are_refused(capsys):
    assert main(["bench", "--preset=tiny", "--kernels=mkl"]) == 2
    assert "unknown kernels 'mkl'" in capsys.readouterr().err


def test_the_figures_say_who_computed_the_products(work):
    assert sampling.description(work)["kernels"] == "xla"
    made = operations_for("native", "auto", "cpu")
    asked = dataclasses.replace(work, network=work.network.clone(operations=made))
    assert sampling.description(asked)["kernels"] == made.name
