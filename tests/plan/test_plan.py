"""What a plan finds and what it refuses; compilers for devices that are not there stay out."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from guidedflow import cli, plan
from guidedflow.commands.plan import parse, with_fields
from guidedflow.config_files import load
from guidedflow.pipelines import Method
from guidedflow.plan import planning, program, proposals, topology
from guidedflow.plan.hlo import Collective
from guidedflow.target import attached
from guidedflow.training.config import defaults

DEVICES = 4


@pytest.fixture(autouse=True)
def cpus_are_the_topology(monkeypatch):
    """The four devices of the tests, as if they were those of a slice."""
    monkeypatch.setattr(planning, "target_of", lambda name: attached())
    monkeypatch.setattr(proposals, "target_of", lambda name: attached())


@pytest.fixture(scope="module")
def digits():
    return plan.dataset_for(small(), None, None)


def small(**network):
    config = defaults()
    config.network.update({"preset": "tiny", "scan_layers": True, **network})
    config.batch, config.parallel.strategy = 20, "fsdp"
    return config


def test_a_step_is_planned_and_moves_no_activation(digits):
    made = plan.plan(small(), "v5e:2x2", digits)
    assert not made.refusal
    assert not made.warnings
    assert set(made.moved) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert made.bytes_moved > 0
    assert made.ideal <= made.state
    assert made.bound["products"] == pytest.approx(made.operations / DEVICES / 197e12)


def test_sampling_needs_no_collective_and_holds_the_parameters_whole(digits):
    made = plan.plan(small(), "v5e:2x2", digits, Method(scale=2.0, solver="euler", steps=2))
    assert made.moved == {}
    assert made.state == pytest.approx(DEVICES * made.ideal, rel=0.01)
    # Two branches a step, and a step's forward pass is a third of a training step's.
    training = plan.plan(small(), "v5e:2x2", digits)
    assert made.operations == pytest.approx(4 * training.operations / 3, rel=0.1)


def test_a_gathered_activation_is_named():
    mesh = jax.make_mesh((DEVICES,), ("data",))
    leaf = jax.ShapeDtypeStruct((32, 48), np.float32, sharding=NamedSharding(mesh, P("data")))
    kernel = Collective("all-gather", ((32, 48),), 4 * 32 * 48, DEVICES, 1, "blocks/mlp")
    tokens = dataclasses.replace(kernel, shapes=((7, 11, 48),), times=3, layer="blocks/attention")
    assert planning.activations([kernel], {"kernel": leaf}, DEVICES) == []
    (line,) = planning.activations([kernel, tokens], {"kernel": leaf}, DEVICES)
    assert "blocks/attention" in line
    assert "3 all-gather of 7×11×48" in line


def test_a_refusal_is_one_line_with_what_fits(digits, monkeypatch):
    def refuse(setup, state):
        if setup.config.network.remat != "full":
            raise program.RefusedError("out of memory: needs 2G of 1G hbm")
        return compile_step(setup, state)

    compile_step = program.compile_step
    monkeypatch.setattr(program, "compile_step", refuse)
    config = small(remat="dots")
    config.parallel.strategy = "data"
    made = plan.plan(config, "v5e:2x2", digits)
    fits = plan.that_fit(made, config, digits)
    assert fits == ("--config.parallel.strategy=fsdp --config.network.remat=full",)
    text = plan.as_table([dataclasses.replace(made, fits=fits)])
    assert "needs 2G of 1G hbm" in text
    assert fits[0] in text


def test_the_compilers_complaint_becomes_one_line():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of\nmemory in memory space hbm. Used 16.40G of 15.75G hbm. ..."
    )
    assert program._refusal(text) == "out of memory: needs 16.40G of 15.75G hbm"


def test_data_that_are_not_there_have_the_presets_shape():
    made = plan.dataset_for(load("imagenet256_dit_xl2"), None, None)
    assert (made.image_shape, made.num_classes) == ((32, 32, 4), 1000)
    assert made.take(1)["image"].shape == (1, 32, 32, 4)


def test_data_that_are_not_there_may_be_described(tmp_path):
    config = load("imagenet64")
    config.dataset.data_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r"--image_shape=64x64x3 and --classes=1000"):
        plan.dataset_for(config, None, None)
    assert plan.dataset_for(config, (64, 64, 3), 1000).image_shape == (64, 64, 3)


def test_a_table_has_a_column_a_plan_and_json_the_same(digits):
    one = plan.Plan("v5e:2x2", 4, "fsdp", 8, "training step", temporaries=3_000_000)
    two = dataclasses.replace(
        one, topology="v6e:2x2", moved={"all-gather": {"count": 2, "bytes": 5}}
    )
    lines = plan.as_table([one, two]).splitlines()
    assert lines[0].split() == ["v5e:2x2", "v6e:2x2"]
    assert any(line.split() == ["all-gather", "none", "0.0", "in", "2"] for line in lines)
    assert [found["bytes_moved"] for found in plan.as_json([one, two])] == [0, 5]


def fails(capsys, *arguments):
    assert cli.main(["plan", "--config=imagenet256_dit_xl2", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5f:4x4"], "unknown chip 'v5f' (did you mean 'v5"),
        (["--topology=v5e"], "expected a topology as v5e:4x4, got 'v5e'"),
        (["--topology=v5p:4x4"], "expected a topology as v5p:2x4x4, got 'v5p:4x4'"),
        (["--topology=v5e:4x4", "--sample"], "--sample needs --batch"),
        (["--topology=v5e:4x4", "--image_shape=64"], "expected a shape as 64x64x3"),
        (["--topology=v5e:4x4", "--config.network.depht=2"], "unknown config field"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    # It would switch the cache of the other tests off.
    monkeypatch.setattr("guidedflow.commands.plan.without_devices", lambda environment: None)
    assert message in fails(capsys, *arguments)


def test_a_slice_that_no_host_has_names_the_nearest(monkeypatch):
    from jax.experimental import topologies

    def refuse(**asked):
        raise RuntimeError(f"INVALID_ARGUMENT: {asked['topology_name']}")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=r"'v5e:5x5' \(did you mean 'v5e:4x8'\?\)"):
        topology.target_of("v5e:5x5")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_says_what_to_install():
    with pytest.raises(RuntimeError, match=r"pip install 'jax\[tpu\]'"):
        topology.target_of("v5e:4x4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 21}, "config.batch=21 does not divide over 4 devices"),
        (
            {"parallel.strategy": "mesh", "parallel.data": 3, "parallel.fsdp": 2},
            "a mesh of data=3 × fsdp=2 does not fit 4 devices",
        ),
        ({"parallel.strategy": "fspd"}, "did you mean 'fsdp'"),
    ],
)
def test_what_does_not_fit_the_devices_is_said(digits, change, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(proposals.with_changes(small(), change), "v5e:2x2", digits)


def test_fields_of_a_config_are_set_on_the_command_line():
    given, fields = parse(["--config=digits", "--topology=v5e:2x2", "--config.network.depth=2"])
    assert given.topology == "v5e:2x2"
    assert with_fields(load(given.config), fields).network.depth == 2
