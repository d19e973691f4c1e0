"""A disk that is really full: a file system of half a megabyte in memory."""

import subprocess
import sys

import pytest

from guidedflow import cli
from guidedflow.commands import train
from guidedflow.training.checkpoint import path_of, steps_in
from guidedflow.training.metrics import JsonLines, read


def mount(folder, options):
    """Mount a small file system, or skip the test where only root may."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    mount(tmp_path, "size=600k")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def program(disk, tiny, monkeypatch, capsys):
    """Train on that disk; return the exit code and what stands on stderr."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(train, "load_config", lambda file: tiny)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # to have it back at the end

    def call(**fields):
        fields = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
        code = cli.main(
            ["train", "--config=tiny", f"--workdir={disk / 'run'}", "--resume", *fields]
        )
        return code, capsys.readouterr().err

    return call


def test_a_disk_that_fills_up_stops_the_run_and_the_older_checkpoints_load(disk, program):
    every = {"checkpoint__every": 1, "checkpoint__keep_last": 1000, "log__every": 1000}
    code, err = program(steps=1000, **every)
    checkpoints = disk / "run" / "checkpoints"
    saved = steps_in(checkpoints)
    failed = path_of(checkpoints, len(saved) + 1)
    assert (code, err) == (
        2,
        f"guidedflow: cannot write checkpoint {failed}: No space left on device\n",
    )
    assert saved == list(range(1, len(saved) + 1))
    assert not list(checkpoints.glob(".saving-*"))
    mount(disk, "remount,size=8m")
    assert program(steps=len(saved) + 2, **every) == (0, "")
    assert steps_in(checkpoints) == list(range(1, len(saved) + 3))


def test_nothing_but_that_line_is_said(disk, program, caplog):
    """However much of the save finds room, its threads keep their traces to themselves."""
    for room in (1, 5, 10):
        filler = disk / "filler"
        filler.write_bytes(bytes(600 * 1024 - 4096 * (5 + room)))
        code, err = program(steps=2, checkpoint__every=1, log__every=2)
        assert code == 2
        assert err.count("\n") == 1, err
        assert "No space left on device" in err
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        filler.unlink()


def test_a_log_that_finds_no_room_is_named_and_goes_on_where_it_was_cut(disk):
    path = disk / "metrics.jsonl"
    log = JsonLines(path, 0)
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match=f"^cannot write {path}: No space left on device$"):
        log.write(1, {"loss": 0.5})
    with pytest.raises(OSError, match=f"^cannot write {path}"):
        log.close()
    (disk / "filler").unlink()
    again = JsonLines(path, 1000)
    again.write(1001, {"loss": 0.25})
    again.close()
    assert read(path)[-1] == {"step": 1001, "loss": 0.25}


def test_a_workdir_on_a_full_disk_is_one_line(disk, program):
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(1 << 20))
    code, err = program(steps=4)
    assert code == 2
    assert err.count("\n") == 1
    assert str(disk / "run") in err
    assert "No space left on device" in err
    (disk / "filler").unlink()
    assert program(steps=4) == (0, "")
