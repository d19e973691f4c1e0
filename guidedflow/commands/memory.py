"""What `guidedflow`, the program, asks of the C library's memory; importing the library asks nothing.

A compiled CPU program takes its temporary memory in one piece and frees it at its end.  glibc gives a
large piece back to the operating system and gets it anew, page by page, the next time: in a training
step of DiT-S/2 140,000 pages, where each is a fault.  Kept, the same memory serves every step.
"""

import ctypes
import importlib.util
import os
import platform
from collections.abc import Mapping

# malloc.h's names: freed memory stays with the process, nothing is mapped for one allocation, and all
# threads share one heap, as only the first one holds pieces of more than 64 MB.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
_DECIDED = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_ARENA_MAX",
)
_ACCELERATORS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "libtpu")


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep the memory that it frees, for what it allocates next.

    Call it before other threads start.  It does nothing where the C library is not glibc, where JAX
    has an accelerator, whose memory is another, or where the environment has decided.

    Args:
      environment: os.environ.
    Returns:
      whether it did.
    """
    decided = any(name in environment for name in _DECIDED)
    decided |= "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
    if decided or platform.libc_ver()[0] != "glibc":
        return False
    if any(importlib.util.find_spec(name) for name in _ACCELERATORS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(number, value) == 1 for number, value in _SETTINGS.values())
