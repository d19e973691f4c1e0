"""Memory that `guidedflow`, the program, keeps from one step to the next; the library leaves it alone.

A compiled program's temporary memory is one piece, asked for at its start and given back at its end.
glibc maps a piece of more than 32 MB anew each time, and the system fills it with zeros page by page.
docs/benchmarks.md says what that takes.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Mapping

# malloc.h's numbers.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory(environment: Mapping[str, str]) -> bool:
    """Let glibc keep freed memory, up to 64 MB per thread and any amount in the first thread.

    Larger pieces of other threads are mapped anew as before.  A user who set one of glibc's own
    variables (MALLOC_..., GLIBC_TUNABLES) has decided, and nothing changes.

    Args:
      environment: os.environ.
    Returns:
      Whether it does.
    """
    decided = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment)
    if decided or os.name != "posix" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))


def collect_seldom() -> None:
    """Let Python look for unreachable objects after 50,000 new ones and not after 700, for older ones
    five times as seldom.

    Importing and tracing make hundreds of thousands, which stay.  docs/benchmarks.md, Second start.
    """
    gc.set_threshold(50_000, 50, 50)
