"""Two processes on the loopback address, two devices each: real ranks, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import QUICKLY

from guidedflow import cli
from guidedflow.training import metrics
from guidedflow.training.checkpoint import path_of, read_record, steps_in
from guidedflow.training.loop import train

WORKER = Path(__file__).parent / "worker.py"
STEPS = 100
FIELDS = {"steps": STEPS, "log.every": 10}
NEVER = "--config.checkpoint.every=1000000"
# Everything that a run does beside its steps.
BUSY = [
    "--config.parallel.strategy=fsdp", "--config.checkpoint.every=10",
    "--config.held_out.every=20", "--config.held_out.batches=2",
    "--config.sample.every=50", "--config.sample.rows=1", "--config.sample.steps=2",
]  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, cache, devices, fault=""):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "FAULT": fault,
    }
    return subprocess.Popen(
        [sys.executable, WORKER, *map(str, arguments)],
        cwd=WORKER.parents[2], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def launch(cache):
    """Start both ranks of a job; what still lives at the end of the test is killed."""
    started = []

    def ranks(*arguments, faults=("", "")):
        address = f"--coordinator=127.0.0.1:{free_port()}", "--process_count=2"
        for rank, fault in enumerate(faults):
            mine = [
                part.replace("RANK", str(rank))
                for argument in arguments
                for part in (
                    [argument] if argument != "JOIN" else [*address, "--process_index=RANK"]
                )
            ]
            started.append(start(mine, cache, devices=2, fault=fault))
        return started[-2:]

    yield ranks
    for process in started:
        process.kill()
        process.communicate()


def run(folder):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    return [f"--workdir={folder}", *fields, "JOIN"]


def wait_for(process, words):
    seen = []
    for line in process.stdout:
        if words in line:
            return
        seen.append(line)
    pytest.fail(f"no {words!r} in:\n{''.join(seen)}")


def finish(processes):
    """Wait for both; return exit codes and outputs."""
    output = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], output


def test_two_processes_stopped_and_resumed_equal_one_process(tmp_path, tiny, launch):
    """SIGTERM goes to rank 1 alone; both save the same step and end well."""
    first = launch(*run(tmp_path / "two"), "--config.parallel.strategy=fsdp", NEVER)
    wait_for(first[0], "step 20/100")
    first[1].send_signal(signal.SIGTERM)
    codes, output = finish(first)
    assert codes == [0, 0], output
    (saved,) = steps_in(tmp_path / "two" / "checkpoints")
    assert 20 <= saved < STEPS

    codes, output = finish(launch(*run(tmp_path / "two"), "--config.parallel.strategy=pmap", NEVER))
    assert codes == [0, 0], output
    assert f"resumed from step {saved}" in output[0]
    assert "step" not in output[1]  # only process 0 writes

    tiny.update_from_flattened_dict(FIELDS)
    train(tiny, tmp_path / "one", display=False)
    one, two = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in two] == [r["step"] for r in one]
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-5)


def broken(launch, folder, *faults):
    """Run until the fault of one rank has ended both; return exit codes and outputs."""
    processes = launch(*run(folder), *BUSY, faults=faults)
    for process in processes:
        # The first to end is the faulty one, and the other may take what it takes to notice.
        process.wait(timeout=120)
    return finish(processes)


def stopped(codes, output, checkpoints):
    assert codes == [0, 0], output
    assert "stopped as asked, saved step 20" in output[0]
    assert steps_in(checkpoints) == [10, 20]


def second_killed(codes, output, checkpoints):
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None), output[0]
    # It ends by the error that it meets, and says so, or XLA ends it by a signal before it meets one.
    assert codes[0] < 0 or "the job ends with this process" in output[0], (codes, output[0][-500:])


def first_killed(codes, output, checkpoints):
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, None), output[1]
    assert steps_in(checkpoints)[-1] in (50, 60)  # the kill may fall into the save of 60


def second_raised(codes, output, checkpoints):
    assert codes[1] == 1
    assert codes[0] not in (0, None), output[0]
    assert "a fault of this process alone" in output[1]


# What ends the job, one after another, each time resumed from where the last one ended it.
FAULTS = [
    (("", "term in evaluation 20"), stopped),
    (("", "kill 43"), second_killed),
    (("kill 63", ""), first_killed),
    (("", "raise 83"), second_raised),
]
# The short form is a kill; `make faults` takes all.
FAULTS = FAULTS if os.environ.get("ALL_FAULTS") else FAULTS[1:2]


@pytest.mark.slow
def test_whatever_ends_a_rank_ends_the_job_and_the_resumed_run_is_identical(tmp_path, launch):
    codes, output = finish(launch(*run(tmp_path / "whole"), *BUSY))
    assert codes == [0, 0], output
    folder = tmp_path / "broken"
    checkpoints = folder / "checkpoints"
    for faults, check in FAULTS:
        check(*broken(launch, folder, *faults), checkpoints)

    codes, output = broken(launch, folder, "", "")
    assert codes == [0, 0], output
    assert read_record(path_of(checkpoints, STEPS)) == read_record(
        path_of(tmp_path / "whole" / "checkpoints", STEPS)
    )
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_two_processes_draw_and_judge_what_one_does(tmp_path, tiny, launch, capsys):
    """Each rank is told to write to a folder of its own; only the first does."""
    workdir, method = tmp_path / "run", ["--steps=2", "--batch=16"]
    tiny.steps = 4
    train(tiny, workdir, display=False)
    sample = ["sample", f"--workdir={workdir}", "--each=3", "--scale=2", *method]
    evaluate = ["evaluate", f"--workdir={workdir}", "--scales=2", "--images=40", *method]
    for rank in "01":
        (tmp_path / rank).mkdir()
    out = tmp_path / "RANK"
    codes, output = finish(
        launch(
            *sample, "JOIN", f"--out={out}/a.npz", "then", *evaluate, "JOIN", f"--out={out}/judged"
        )
    )
    assert codes == [0, 0], output
    assert "30 images" in output[0]
    assert "images" not in output[1]
    assert not list((tmp_path / "1").iterdir())
    scores = json.loads((tmp_path / "0" / "judged" / "scores.json").read_text())
    assert [row["count"] for row in scores["scales"]] == [40]

    assert cli.main([*sample, f"--out={tmp_path / 'one.npz'}"]) == 0
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "0" / "a.npz")
    np.testing.assert_array_equal(two["labels"], one["labels"])
    # The programs are compiled apart: a value on the edge of two bytes may fall to either.
    apart = np.abs(two["arr_0"].astype(int) - one["arr_0"])
    assert apart.max() <= 1
    assert np.mean(apart > 0) < 0.01
    assert np.std(one["arr_0"]) > 10


def test_two_thousand_steps_on_four_host_devices_come_to_their_end(tmp_path, cache, monkeypatch):
    """Without NPROC, where steps that are never waited for block each other for ever.

    SIGTERM comes in the evaluation at the last of them, and the exit code is that of a run that ended.
    """
    monkeypatch.delenv("NPROC", raising=False)
    fields = {
        "steps": 10**6, "log.every": 10**6, "checkpoint.every": 10**6, "held_out.every": 2000,
        "held_out.batches": 1, "parallel.strategy": "pmap",
    }  # fmt: skip
    arguments = [f"--workdir={tmp_path}", *(f"--config.{n}={v}" for n, v in fields.items())]
    process = start(arguments, cache, devices=4, fault="term in evaluation 2000")
    try:
        output = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert steps_in(tmp_path / "checkpoints") == [2000]
