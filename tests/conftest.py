"""Four CPU host devices, strict rank promotion; set before anything touches JAX."""

import itertools
import os

# Virtual CPU devices can deadlock on few cores when the thread pool is sized from the core count.
os.environ.setdefault("NPROC", "16")
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is compiling small programs: the least optimisation halves it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
    ]
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_make_parametrize_id(config, val, argname):
    """Name a function by its name: its address differs between the processes of pytest-xdist."""
    return getattr(val, "__name__", type(val).__name__) if callable(val) else None


# Files that take long, or wait for processes of their own: begun first, none is left over for one
# worker at the end.
FIRST = ("test_processes.py", "test_contracts.py", "test_more_figures.py", "test_experiments.py")


def pytest_collection_modifyitems(items):
    """Begin with the longest files; the others keep their order."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


modules = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """Keep a process of the whole suite within about 2 GiB: it compiles some thousand programs."""
    yield
    if next(modules) % 8 == 0:
        jax.clear_caches()
