"""Two processes on the loopback address, two devices each: real ranks, real signals."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from guidedflow.training import metrics
from guidedflow.training.checkpoint import steps_in
from guidedflow.training.loop import train

WORKER = Path(__file__).parent / "worker.py"
FIELDS = {"steps": 100, "log.every": 10}
NEVER = "--config.checkpoint.every=1000000"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def launch():
    """Start both ranks of a run; what still lives at the end of the test is killed."""
    started = []

    def start(*arguments):
        started.extend(ranks := two_ranks(*arguments))
        return ranks

    yield start
    for process in started:
        process.kill()
        process.communicate()


def two_ranks(folder, cache, *flags):
    port = free_port()
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    return [
        subprocess.Popen(
            [
                sys.executable, WORKER, f"--workdir={folder}", *fields, *flags,
                f"--coordinator=127.0.0.1:{port}", "--process_count=2", f"--process_index={rank}",
            ],
            cwd=WORKER.parents[2], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip


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
    first = launch(tmp_path / "two", tmp_path / "c", "--config.parallel.strategy=fsdp", NEVER)
    wait_for(first[0], "step 20/100")
    first[1].send_signal(signal.SIGTERM)
    codes, output = finish(first)
    assert codes == [0, 0], output
    (saved,) = steps_in(tmp_path / "two" / "checkpoints")
    assert 20 <= saved < 100

    codes, output = finish(
        launch(tmp_path / "two", tmp_path / "c", "--config.parallel.strategy=pmap", NEVER)
    )
    assert codes == [0, 0], output
    assert f"resumed from step {saved}" in output[0]
    assert "step" not in output[1]  # only process 0 writes

    tiny.update_from_flattened_dict(FIELDS)
    train(tiny, tmp_path / "one", display=False)
    one, two = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in two] == [r["step"] for r in one]
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-5)


def test_a_rank_that_dies_ends_the_job_and_the_next_one_goes_on(tmp_path, launch):
    broken = launch(
        tmp_path / "run",
        tmp_path / "c",
        "--config.checkpoint.every=10",
        "--config.parallel.strategy=data",
    )
    wait_for(broken[0], "step 40/100")
    broken[1].kill()
    died = time.monotonic()
    codes, output = finish(broken)
    assert codes[0] not in (0, None), output[0]
    assert time.monotonic() - died < 60
    saved = steps_in(tmp_path / "run" / "checkpoints")
    assert saved, output[0]
    assert 20 <= saved[-1] < 100
