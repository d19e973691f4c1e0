"""What the program asks of the C library's memory."""

import platform
import subprocess
import sys

import pytest

from guidedflow.commands import memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc alone")

# Page faults of a thread that takes 64 MB a second time; each fresh page of 4 kB is one.
FAULTS = """
import resource, threading
{prepare}
def take():
    return b"x" * 2**26
def both():
    take()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    take()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=both)
thread.start()
thread.join()
"""


def faults(prepare, **environment):
    script = FAULTS.format(prepare=prepare)
    made = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return int(made.stdout)


@glibc
def test_what_the_program_frees_serves_again():
    assert faults("") > 1000
    assert faults("from guidedflow.commands import memory; assert memory.keep_freed()") < 100


@glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}],
)
def test_what_the_environment_decides_stays(environment):
    assert not memory.keep_freed(environment)


def test_other_c_libraries_and_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_ACCELERATORS", ("pytest",))
    assert not memory.keep_freed({})
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory, "_ACCELERATORS", ())
    assert not memory.keep_freed({})


@glibc
def test_the_program_asks_and_a_call_of_it_does_not():
    count = "from guidedflow import cli; from guidedflow.commands import memory; asked = []"
    count += "; memory.keep_freed = lambda: asked.append(1); import sys; sys.argv = ['guidedflow', '--help']"
    script = count + "; cli.main(['--help']); assert not asked; cli.main(); assert asked"
    subprocess.run([sys.executable, "-c", script], check=True)
