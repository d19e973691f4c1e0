"""Flags of the XLA compiler that `guidedflow`, the program, sets; importing the library sets none.

docs/benchmarks.md says which flags were tried, and what came of them.
"""

import importlib.util
import os
from collections.abc import MutableMapping

# NVIDIA's own JAX images start with it: messages between GPUs pass while they compute.
GPU = ("--xla_gpu_enable_latency_hiding_scheduler=true",)
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def has_gpu_plugin() -> bool:
    """Return whether JAX's plugin for NVIDIA GPUs is installed."""
    return any(importlib.util.find_spec(name) for name in PLUGINS)


def set_flags(environment: MutableMapping[str, str], gpu: bool) -> None:
    """Add the program's flags to XLA_FLAGS, except those that the user has set.

    XLA reads the variable once, when JAX first asks for a device: call it before that. Where there is
    no GPU nothing is added, since a changed flag may change what the compilation cache is asked for.

    Args:
      environment: os.environ.
      gpu: whether JAX can find NVIDIA GPUs.
    """
    given = environment.get("XLA_FLAGS", "")
    named = {flag.split("=")[0] for flag in given.split()}
    wanted = [flag for flag in GPU if gpu and flag.split("=")[0] not in named]
    if wanted:
        environment["XLA_FLAGS"] = " ".join([*given.split(), *wanted])


def use_flags() -> None:
    """Set the program's flags in this process."""
    set_flags(os.environ, has_gpu_plugin())
