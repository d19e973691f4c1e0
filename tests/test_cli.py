"""The program: one run from its commands, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from compiling import QUICKLY

from guidedflow import cli
from guidedflow.training import integrity, loop, workdir
from guidedflow.training.checkpoint import SaveError, path_of, steps_in

ROOT = Path(__file__).parents[1]
DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"
SMALL = [
    "--config.network.preset=tiny",
    "--config.network.depth=1",
    "--config.batch=16",
    "--config.steps=4",
    "--config.optimizer.warm_up=2",
    "--config.log.every=2",
    "--config.checkpoint.every=2",
    "--config.sample.steps=2",
]


def program(*arguments, cache, **environment):
    """Run guidedflow as a process of its own, on one device."""
    return subprocess.run(
        [sys.executable, "-m", "guidedflow.cli", *map(str, arguments)],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": QUICKLY,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def fails(capsys, *arguments):
    """Run the program in this process; return the line that it complains with."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("guidedflow: ")
    return err


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    done = program(
        "train", DIGITS, f"--workdir={folder / 'run'}", *SMALL, cache=folder / "compiled"
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_training_prints_lines_and_writes_its_workdir(trained):
    folder, done = trained
    assert "step 4/4  loss" in done.stdout
    assert "steps/s" in done.stdout
    run = folder / "run"
    assert steps_in(run / "checkpoints") == [2, 4]
    assert json.loads((run / "config.json").read_text())["network"]["preset"] == "tiny"
    clocks = (run / "throughput.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in clocks] == [2, 4]
    assert (run / "samples" / "00000004.png").exists()
    assert list((run / "tensorboard").iterdir())


def test_compiled_programs_are_kept_for_the_next_start(trained):
    assert any(path.name.startswith("jit_step") for path in (trained[0] / "compiled").iterdir())


def test_resuming_a_finished_run_says_that_nothing_is_left(trained, capsys):
    arguments = ["train", DIGITS, f"--workdir={trained[0] / 'run'}", *SMALL, "--resume"]
    assert cli.main(arguments) == 0
    assert "nothing to do: the run is at its last step, 4" in capsys.readouterr().out


MISTAKES = {
    "no config": (["--workdir=w"], "--config is missing"),
    "no workdir": ([DIGITS], "--workdir is missing"),
    "config file": (["--config=configs/absent.py", "--workdir=w"], "no config file configs/absent"),
    "field": ([DIGITS, "--workdir=w", "--config.netwrk.depth=1"], 'Did you mean "network"'),
    "type": ([DIGITS, "--workdir=w", "--config.steps=many"], "--config.steps=many"),
    "flag": ([DIGITS, "--workdir=w", "--resum"], "Unknown command line flag 'resum'"),
    "repeated": (
        [DIGITS, "--workdir=w", "--config.steps=3", "--config.steps=4"],
        "--config.steps is given more than once",
    ),
    "argument": ([DIGITS, "--workdir=w", "again"], "unexpected argument 'again'"),
    "nan": ([DIGITS, "--workdir=w", "--config.drop_rate=nan"], "drop_rate must be a finite"),
    "name": ([DIGITS, "--workdir=w", "--config.network.preset=digts"], "did you mean 'digits'"),
    "mesh": (
        [DIGITS, "--workdir=w", "--config.parallel.strategy=mesh", "--config.parallel.data=3"],
        "a mesh of data=3 × fsdp=1 does not fit 4 devices",
    ),
    "batch": ([DIGITS, "--workdir=w", "--config.batch=6"], "batch=6 does not divide over 4 dev"),
    "processes": ([DIGITS, "--workdir=w", "--process_count=2"], "go together"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    assert message in fails(capsys, "train", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_workdir_in_use_is_one_line(trained, capsys):
    with workdir.locked(trained[0] / "run"):
        line = fails(capsys, "train", DIGITS, f"--workdir={trained[0] / 'run'}", *SMALL, "--resume")
    assert f"is in use by a live run (process {os.getpid()} on" in line


def test_a_checkpoint_of_another_model_is_one_line(trained, capsys):
    other = [field for field in SMALL if "depth" not in field] + ["--config.network.depth=2"]
    line = fails(capsys, "train", DIGITS, f"--workdir={trained[0] / 'run'}", *other, "--resume")
    assert "network.depth=1, this one has network.depth=2" in line
    resolved = json.loads((trained[0] / "run" / "config.json").read_text())
    assert resolved["network"]["depth"] == 1


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_a_checkpoint_of_a_newer_version_is_one_line(trained, tmp_path, capsys, command):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    newest = path_of(tmp_path / "run" / "checkpoints", 4)
    record = json.loads((newest / "run.json").read_text())
    (newest / "run.json").write_text(json.dumps({**record, "format": record["format"] + 1}))
    (newest / "files.json").unlink()
    integrity.commit(newest, newest)
    arguments = {"train": [DIGITS, *SMALL, "--resume"], "sample": [f"--out={tmp_path / 'a.png'}"]}
    line = fails(capsys, command, f"--workdir={tmp_path / 'run'}", *arguments.get(command, []))
    assert "was written by a newer guidedflow (format 2, this one reads up to 1)" in line
    assert steps_in(tmp_path / "run" / "checkpoints") == [2, 4]


@pytest.mark.parametrize(
    ("stopped", "options", "code"),
    [(True, [], 0), (True, ["--stop_code=75"], 75), (False, ["--stop_code=75"], 0)],
)
def test_a_stopped_run_ends_with_the_code_that_was_asked_for(
    tmp_path, monkeypatch, stopped, options, code
):
    monkeypatch.setattr(loop, "train", lambda *given, **options: loop.Outcome(None, stopped))
    assert cli.main(["train", DIGITS, f"--workdir={tmp_path}", *options]) == code


def test_an_existing_run_wants_resume(trained, capsys):
    line = fails(capsys, "train", DIGITS, f"--workdir={trained[0] / 'run'}", *SMALL)
    assert "already holds a run at step 4; add --resume" in line


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = fails(capsys, "train", DIGITS, f"--workdir={tmp_path / 'file' / 'run'}", *SMALL)
    assert "Not a directory" in line


def test_an_unknown_command_names_the_nearest(capsys):
    assert "unknown command 'trian' (did you mean 'train'?)" in fails(capsys, "trian")


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main([]) == 2


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, capsys):
    def broken(arguments):
        raise KeyError("inner")

    monkeypatch.setattr(cli, "run", broken)
    assert cli.main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_running_out_of_memory_is_one_line(monkeypatch, capsys):
    def full(arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(cli, "run", full)
    assert "take a smaller batch" in fails(capsys, "train")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/guidedflow/jax"),
        ({"HOME": "/home/me"}, "/home/me/.cache/guidedflow/jax"),
        ({"HOME": "/home/me", "JAX_COMPILATION_CACHE_DIR": "/there"}, "/there"),
        ({"HOME": "/home/me", "JAX_COMPILATION_CACHE_DIR": ""}, None),
    ],
)
def test_the_cache_is_on_in_the_users_folder_unless_told_otherwise(
    monkeypatch, environment, folder
):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.update({name: value}))
    cli.use_compilation_cache()
    assert asked.get("jax_compilation_cache_dir") == folder
    assert cli.CACHE_BYTES == 2 * 2**30


def test_what_is_used_stays_in_the_cache(tmp_path, monkeypatch):
    """The oldest by date of writing was read last."""
    for written, read, name in ((1, 9, "used"), (2, 2, "unused"), (3, 3, "newest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (read, written))
    monkeypatch.setattr(cli, "CACHE_BYTES", 25)
    cli._trim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "used"]


def test_the_cache_keeps_to_its_size(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(cli, "CACHE_BYTES", 25)
    cli._trim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]


def test_a_full_disk_is_not_taken_for_full_memory():
    error = SaveError("cannot write checkpoint c: RESOURCE_EXHAUSTED: Failed writing")
    assert cli.explain(error) == str(error)


def test_an_adaptive_solver_that_gives_up_is_one_line():
    assert (
        cli.explain(RuntimeError("2 of 4 examples did not\nreach"))
        == "2 of 4 examples did not reach"
    )
    assert cli.explain(ImportError("adaptive steps need diffrax")) == "adaptive steps need diffrax"
    assert cli.explain(ModuleNotFoundError("a fault of ours")) is None
    assert cli.explain(jax.errors.JaxRuntimeError("INTERNAL")) is None
