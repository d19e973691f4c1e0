"""What a run lets one watch: the same numbers in every place, and the same noise in every grid."""

import struct
import sys
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from guidedflow.training import metrics, plots
from guidedflow.training.build import build
from guidedflow.training.loop import train
from guidedflow.training.throughput import Meter

COMPUTED = {"loss", "grad_norm", "param_norm", "learning_rate", "skipped"}
CLOCKS = {"steps_per_second", "images_per_second", "input_wait", "model_flop_utilisation"}
MEMORY = {"memory_bytes", "memory_peak_bytes"}


def scalars(folder):
    """Read event files: records of a length, its checksum, a protocol buffer, its checksum."""
    found = {}
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
            at += 12 + size + 4
    return found


class FakeRun:
    """In place of a run of Weights & Biases."""

    def __init__(self):
        self.logged, self.finished = {}, False

    def log(self, record, step):
        self.logged |= {(step, name): value for name, value in record.items()}

    def finish(self):
        self.finished = True


def test_every_number_reaches_every_place(tiny, tmp_path, monkeypatch):
    """JSON lines, TensorBoard and Weights & Biases; a device that counts its memory."""
    run, asked = FakeRun(), {}
    wandb = types.SimpleNamespace(init=lambda **options: asked.update(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    counts = {"bytes_in_use": 5, "peak_bytes_in_use": 9}
    monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda self: counts)
    tiny.steps, tiny.log.tensorboard, tiny.log.wandb = 8, True, "a project"
    train(tiny, tmp_path / "digits", display=False)

    lines = metrics.read(tmp_path / "digits" / "metrics.jsonl")
    clocks = metrics.read(tmp_path / "digits" / "throughput.jsonl")
    assert [line["step"] for line in lines] == [line["step"] for line in clocks] == [4, 8]
    assert all(set(line) == COMPUTED | {"step"} for line in lines)
    assert all(set(line) == CLOCKS | MEMORY | {"step"} for line in clocks)
    assert all(value >= 0 for line in clocks for value in line.values())
    written = {
        (line["step"], name): value
        for line in [*lines, *clocks]
        for name, value in line.items()
        if name != "step"
    }
    seen = scalars(tmp_path / "digits" / "tensorboard")
    assert set(seen) == set(written)
    for key, value in written.items():
        assert seen[key] == pytest.approx(value, rel=1e-6)
    assert run.logged == written
    assert run.finished
    assert (asked["project"], asked["id"], asked["resume"]) == ("a project", "digits", "allow")
    assert asked["config"]["network"]["preset"] == "one layer"


def test_the_norms_and_the_rate_are_those_of_the_state(tiny, tmp_path):
    """The norm of the parameters that the run ends with, and the rate of its last step."""
    tiny.steps = tiny.log.every = 3
    tiny.optimizer.schedule = "constant"
    outcome = train(tiny, tmp_path, display=False)
    (line,) = metrics.read(tmp_path / "metrics.jsonl")
    leaves = jax.tree.leaves(jax.device_get(outcome.state.params))
    norm = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in leaves))
    assert line["param_norm"] == pytest.approx(norm, rel=1e-5)
    assert line["learning_rate"] == pytest.approx(1e-3)
    assert line["grad_norm"] > 0


def test_weights_and_biases_is_asked_for_and_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny.log.wandb = "a project"
    with pytest.raises(ValueError, match=r"log.wandb is set: pip install 'guidedflow\[wandb\]'"):
        train(tiny, tmp_path, display=False)


def test_a_grid_shows_the_same_noise_all_through_training(tiny):
    """Parameters of zero leave the noise as it was: it is the same whatever else is drawn."""
    tiny.sample.rows, tiny.sample.steps = 1, 2
    task, key = build(tiny), jax.random.key(tiny.seed)
    params = jax.tree.map(np.zeros_like, jax.device_get(task.init(key).params))
    sampler = plots.make_sampler(task)
    small = np.asarray(sampler(params, key))
    tiny.sample.rows = 2
    large = np.asarray(plots.make_sampler(task)(params, key))
    assert np.array_equal(small, large[:10])
    assert not np.array_equal(large[:10], large[10:])
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    assert not np.array_equal(np.asarray(sampler(moved, key)), small)


def test_utilisation_is_left_out_where_it_is_not_known():
    assert "model_flop_utilisation" not in Meter(batch=8, flops=0.0, peak=1.0).read(0.0)
