"""Compiler flags: the program sets them, for GPUs alone; importing sets none; XLA knows them all."""

import os
import subprocess
import sys

import pytest

from guidedflow.commands import flags


def test_flags_are_added_to_what_the_user_gave():
    environment = {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}
    flags.set_flags(environment, gpu=True)
    assert environment["XLA_FLAGS"].split() == ["--xla_dump_to=/tmp/x", *flags.GPU]


def test_a_flag_that_the_user_decided_stays_as_it_is():
    given = " ".join(flag.replace("true", "false") for flag in flags.GPU)
    environment = {"XLA_FLAGS": given}
    flags.set_flags(environment, gpu=True)
    assert environment["XLA_FLAGS"] == given


def test_without_a_gpu_nothing_is_set():
    environment = {}
    flags.set_flags(environment, gpu=False)
    assert environment == {}


def program(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("given", "known"), [(flags.GPU, True), (("--xla_no_such_flag=1",), False)]
)
def test_xla_knows_every_flag_and_would_end_the_process_over_another(given, known):
    done = program("import jax; jax.devices()", XLA_FLAGS=" ".join(given))
    assert (done.returncode == 0) == known, done.stderr


def test_importing_anything_sets_no_flag():
    """The modules behind the commands too: only running one sets a flag."""
    code = """
import os, sys
before = dict(os.environ)
import jax
config = dict(jax.config.values)
from guidedflow import cli
import guidedflow.benchmark, guidedflow.commands.bench, guidedflow.commands.flags, guidedflow.pipelines.sampling
import guidedflow.commands.sample, guidedflow.training.loop
ours = ("XLA", "JAX", "LIBTPU", "NCCL", "CUDA", "TF_")
after = {k: v for k, v in os.environ.items() if k.startswith(ours)}
assert after == {k: v for k, v in before.items() if k.startswith(ours)}, after
assert dict(jax.config.values) == config
"""
    done = program(code)
    assert done.returncode == 0, done.stderr


def test_running_the_program_sets_them(monkeypatch, capsys):
    from guidedflow import cli

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(flags, "has_gpu_plugin", lambda: True)
    assert cli.main(["bench", "--preset=tinyy"]) == 2
    assert os.environ["XLA_FLAGS"].split() == list(flags.GPU)
