"""The loop: what it writes, how it goes on, and how it ends."""

import json
import os
import signal
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.training import loop, metrics, start
from guidedflow.training.batches import HeldOut
from guidedflow.training.checkpoint import (
    Checkpointer,
    Keep,
    SaveError,
    path_of,
    read_record,
    steps_in,
)
from guidedflow.training.loop import train
from guidedflow.training.metrics import JsonLines, summarize
from guidedflow.training.state import fingerprint
from guidedflow.training.throughput import Meter
from guidedflow.training.workdir import locked


@pytest.fixture
def whole(tiny, tmp_path):
    """A run that never stopped."""
    tiny.held_out.every = 5
    outcome = train(tiny, tmp_path / "whole", display=False)
    return outcome, (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def stop_after(monkeypatch, step):
    monkeypatch.setattr(loop.StopRequests, "at", lambda self, at: at == step)


def test_a_run_stopped_twice_is_bit_identical_to_one_that_never_stopped(
    tiny, tmp_path, whole, monkeypatch
):
    folder = tmp_path / "stopped"
    for step in (3, 6):
        stop_after(monkeypatch, step)
        assert train(tiny, folder, resume=True, display=False).stopped
        assert steps_in(folder / "checkpoints")[-1] == step
    monkeypatch.undo()
    outcome = train(tiny, folder, resume=True, display=False)
    assert not outcome.stopped
    assert fingerprint(outcome.state) == fingerprint(whole[0].state)
    assert (folder / "metrics.jsonl").read_bytes() == whole[1]
    for step in (8, 12):  # what they were rated at step 5 outlived the stop at step 6
        one, two = (
            read_record(path_of(tmp_path / name / "checkpoints", step))
            for name in ("whole", "stopped")
        )
        assert one == two
        assert one.metrics


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_log_goes_on_exactly(tiny, tmp_path):
    """The older one falls between two lines of the log, so it must hold the half of a line."""
    tiny.checkpoint.every, tiny.checkpoint.keep_last = 5, 9
    outcome = train(tiny, tmp_path, display=False)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    newest = path_of(tmp_path / "checkpoints", 12)
    (newest / "run.json").unlink()
    again = train(tiny, tmp_path, resume=True, display=False)
    assert fingerprint(again.state) == fingerprint(outcome.state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "checkpoints" / "00000012.damaged-1").is_dir()
    assert steps_in(tmp_path / "checkpoints") == [5, 10, 12]
    assert read_record(newest).step == 12


def test_a_save_that_fails_in_the_background_stops_the_run_at_once(tiny, tmp_path, monkeypatch):
    failed = Future()
    failed.set_exception(SaveError("the disk is gone"))

    def save(self, *state):
        self._saving = failed

    monkeypatch.setattr(Checkpointer, "save", save)
    after, seen = loop.Run._after_step, []

    def counted(self, *arguments):
        seen.append(self.step + 1)
        after(self, *arguments)

    monkeypatch.setattr(loop.Run, "_after_step", counted)
    with pytest.raises(SaveError, match="the disk is gone"):
        train(tiny, tmp_path, display=False)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize(("first", "strategy"), [("data", "pmap"), ("pmap", "fsdp")])
def test_a_checkpoint_goes_on_under_another_strategy(
    tiny, tmp_path, whole, monkeypatch, first, strategy
):
    folder = tmp_path / "moved"
    tiny.parallel.strategy = first
    stop_after(monkeypatch, 6)
    before = train(tiny, folder, display=False)
    monkeypatch.undo()
    tiny.parallel.strategy = strategy
    task = loop.build(tiny)
    after, _ = start.start_state(task, folder / "checkpoints", True, print)
    assert fingerprint(after) == fingerprint(before.state)
    outcome = train(tiny, folder, resume=True, display=False)
    losses = [[r["loss"] for r in metrics.read(tmp_path / n / "metrics.jsonl") if "loss" in r]
              for n in ("moved", "whole")]  # fmt: skip
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)  # noqa: E731
    jax.tree.map(close, jax.device_get(outcome.state.params), jax.device_get(whole[0].state.params))


@pytest.mark.parametrize("during", ["_collect", "_log", "_draw", "_save", "held_out"])
def test_sigterm_saves_within_a_step_and_counts_as_stopped(tiny, tmp_path, monkeypatch, during):
    """Wherever in the loop it comes, the step that is done is saved, and no other."""
    tiny.checkpoint.every = 5 if during == "_save" else 10**6
    tiny.steps, tiny.log.every, tiny.sample.rows, tiny.sample.steps = 1000, 5, 1, 2
    tiny.held_out.every = tiny.sample.every = 5 if during in ("held_out", "_draw") else 0
    owner, name = (HeldOut, "__call__") if during == "held_out" else (loop.Run, during)
    interrupted = getattr(owner, name)
    sent = []

    def with_sigterm(self, *arguments):
        sent.append(during)
        if len(sent) == (5 if during == "_collect" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return interrupted(self, *arguments)

    monkeypatch.setattr(owner, name, with_sigterm)
    handler = signal.getsignal(signal.SIGTERM)
    assert train(tiny, tmp_path, display=False).stopped
    assert steps_in(tmp_path / "checkpoints") == [5]
    assert signal.getsignal(signal.SIGTERM) is handler


def poison(monkeypatch, at):
    """Make the loss NaN at one step."""
    build = loop.build

    def poisoned(config):
        task = build(config)
        make = task.loss_fn

        def loss_fn(params, batch, key):
            bad = jnp.any(key == jax.random.fold_in(jax.random.key(config.seed), at))
            return make(params, batch, key) * jnp.where(bad, jnp.nan, 1.0)

        object.__setattr__(task, "loss_fn", loss_fn)
        return task

    monkeypatch.setattr(loop, "build", poisoned)


def test_a_nan_stops_the_run_and_no_checkpoint_holds_one(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    with pytest.raises(FloatingPointError, match="at step 6; the newest checkpoint is step 4"):
        train(tiny, tmp_path, display=False)
    assert steps_in(tmp_path / "checkpoints") == [4]
    monkeypatch.undo()
    assert not train(tiny, tmp_path, resume=True, display=False).stopped


def test_a_nan_is_skipped_and_counted_where_the_config_says_so(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    tiny.nonfinite = "skip"
    outcome = train(tiny, tmp_path, display=False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(outcome.state)))
    assert [r["skipped"] for r in metrics.read(tmp_path / "metrics.jsonl")] == [0, 1, 0]


def test_what_a_run_leaves_behind(tiny, tmp_path):
    tiny.held_out.every = tiny.sample.every = 6
    tiny.sample.rows, tiny.sample.steps, tiny.log.tensorboard = 1, 2, True
    tiny.log.profile = (2, 1)
    tiny.checkpoint.keep_last, tiny.checkpoint.keep_every = 1, 4
    tiny.steps = 14
    train(tiny, tmp_path, display=False)
    assert json.loads((tmp_path / "config.json").read_text())["network"]["preset"] == "one layer"
    assert steps_in(tmp_path / "checkpoints") == [4, 8, 12, 14]
    for name in ("00000006.png", "00000012.png", "00000014.png"):
        assert (tmp_path / "samples" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert list((tmp_path / "profile").rglob("*.pb"))
    held_out = [r for r in metrics.read(tmp_path / "metrics.jsonl") if "held_out_loss" in r]
    assert [r["step"] for r in held_out] == [6, 12, 14]
    newest = read_record(tmp_path / "checkpoints" / "00000014")
    assert newest.metrics == {"held_out_loss": held_out[-1]["held_out_loss"]}
    clocks = metrics.read(tmp_path / "throughput.jsonl")
    assert all({"steps_per_second", "input_wait"} <= set(line) for line in clocks)


def test_a_workdir_may_be_given_from_where_one_stands(tiny, tmp_path, monkeypatch):
    tiny.steps = 4
    monkeypatch.chdir(tmp_path)
    train(tiny, Path("run"), display=False)
    assert steps_in(tmp_path / "run" / "checkpoints") == [4]
    assert not train(tiny, Path("run"), resume=True, display=False).stopped


def test_a_workdir_with_a_run_wants_resume(tiny, tmp_path):
    tiny.steps = 4
    train(tiny, tmp_path, display=False)
    with pytest.raises(ValueError, match="already holds a run at step 4; add --resume"):
        train(tiny, tmp_path, display=False)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("seed", 1, "seed=0, this one has seed=1"),
        ("batch", 32, "batch=16, this one has batch=32"),
        ("dataset.split", "test", "dataset.length=1497, this one has dataset.length=300"),
        ("network.width", 32, "network.width=None, this one has network.width=32"),
    ],
)
def test_a_run_does_not_go_on_as_another(tiny, tmp_path_factory, field, value, named):
    folder = tmp_path_factory.getbasetemp() / "one-run-for-all"
    tiny.steps = 4
    if not folder.exists():
        train(tiny, folder, display=False)
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=named):
        train(tiny, folder, resume=True, display=False)


def test_a_workdir_has_one_live_run(tiny, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=f"live run .process {os.getpid()} on"):
        train(tiny, tmp_path, display=False)


def test_log_lines_after_the_resumed_step_are_cut_off(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = JsonLines(path, 2)
    log.write(3, {"loss": 0.5})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_a_log_record_counts_what_was_skipped():
    bad = {"loss": float("nan"), "grad_norm": float("nan"), "finite": 0.0, "learning_rate": 0.2}
    good = {"loss": 3.0, "grad_norm": 2.0, "finite": 1.0, "learning_rate": 0.1}
    record = summarize([good, {**good, "loss": 1.0}, bad])
    assert record == {"loss": 2.0, "grad_norm": 2.0, "learning_rate": 0.2, "skipped": 1}


def test_which_checkpoints_are_kept():
    rated = {step: {"held_out_loss": abs(step - 30.0)} for step in range(10, 100, 10)}
    assert Keep(last=2).kept(rated) == {80, 90}
    assert Keep(last=1, every=40).kept(rated) == {40, 80, 90}
    assert Keep(last=1, best=2).kept(rated) == {20, 30, 90}
    rated[30] = {"held_out_loss": float("nan")}
    assert Keep(last=1, best=1).kept(rated) == {20, 90}
    with pytest.raises(ValueError, match="last must be at least 1"):
        Keep(last=0)


def test_the_meter_gives_rates_of_what_it_counted(monkeypatch):
    now = iter([0.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter(batch=8, flops=1e9, peak=1e10)
    for _ in range(10):
        meter.count()
    meter.pause(began=3.0)  # one second of sampling, now 4
    numbers = meter.read(waited=0.4)
    assert numbers["steps_per_second"] == pytest.approx(2.5)
    assert numbers["images_per_second"] == pytest.approx(20.0)
    assert numbers["input_wait"] == pytest.approx(0.1)
    assert numbers["model_flop_utilisation"] == pytest.approx(0.25)
