"""The program keeps freed memory where glibc allows it, and leaves the user's own settings alone."""

import gc
import importlib
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from guidedflow import cli
from guidedflow.commands.memory import collect_seldom, keep_memory

FAULTS = """
import resource
from guidedflow import cli
from guidedflow.commands.memory import keep_memory

def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(touched(), touched(), keep_memory({}), touched(), touched())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_asked_of_the_system_again():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={}, capture_output=True, text=True, check=True
    )
    _, again, kept, _, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < int(again) / 10


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_a_user_who_set_glibcs_own_variables_has_decided(name):
    assert not keep_memory({name: "1"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_memory({})


@pytest.mark.parametrize(
    ("command", "gpu", "kept"),
    [
        ("sample", False, True),
        ("train", False, True),
        ("bench", False, False),
        ("train", True, False),
    ],
)
def test_the_program_keeps_memory_but_not_where_it_is_compared(monkeypatch, command, gpu, kept):
    asked, seldom = [], []
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(cli, "has_gpu_plugin", lambda: gpu)
    monkeypatch.setattr(cli, "use_flags", lambda: None)
    monkeypatch.setattr(cli, "keep_memory", asked.append)
    monkeypatch.setattr(cli, "collect_seldom", lambda: seldom.append(True))
    monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(main=lambda _: 0))
    assert cli.main([command]) == 0
    assert len(asked) == kept
    assert len(seldom) == (command != "bench")


def test_unreachable_objects_are_looked_for_seldom():
    before = gc.get_threshold()
    try:
        collect_seldom()
        assert gc.get_threshold() == (50_000, 50, 50)
    finally:
        gc.set_threshold(*before)
