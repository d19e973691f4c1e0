"""Four CPU host devices, strict rank promotion; set before anything touches JAX."""

import gc
import itertools
import os

from compiling import QUICKLY

# Virtual CPU devices can deadlock on few cores when the thread pool is sized from the core count.
os.environ.setdefault("NPROC", "16")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        QUICKLY,
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


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Keep every compiled program for all the processes of this run of the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="session", autouse=True)
def unreachable_objects_are_looked_for_seldom():
    """A tracer leaves many objects and few cycles; what was imported stays to the end."""
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


modules = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """Keep a process of the whole suite within about 2 GiB: it compiles some thousand programs."""
    yield
    if next(modules) % 8 == 0:
        jax.clear_caches()
