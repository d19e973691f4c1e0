"""Timing, memory, and the facts about the machine that belong to a figure."""

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import guidedflow
from guidedflow.target import attached


def timed(
    runs: Mapping[str, Callable[[], None]], repeats: int, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return seconds of each run, `repeats` of them, taken in turn after one warm-up round.

    Reports the seconds of each warm-up as a first figure.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken = time.perf_counter() - began
            if index:
                seconds[name].append(taken)
            else:
                report(f"warm: {name} {taken:.3g} s")
        if index:
            report(f"round {index} of {repeats}")
    return seconds


def spread(values: list[float] | np.ndarray) -> dict[str, float]:
    """Return the minimum, the median and the maximum."""
    return {
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }


def program_bytes(compiled: Any) -> int:
    """Return the peak bytes of a compiled program on one device, according to XLA.

    These are arguments + outputs + temporaries, minus the memory that outputs share with donated
    arguments; 0 if XLA does not report them.
    """
    try:
        account = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        return 0
    fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    held = sum(int(getattr(account, field, 0)) for field in fields)
    return held - int(getattr(account, "alias_size_in_bytes", 0))


def device_peak() -> int:
    """Return the first device's peak bytes since the start; 0 if the device does not count them."""
    stats = attached().local[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0))


def peak_memory(run: Callable[[], None], compiled_bytes: int) -> dict[str, Any]:
    """Run once, and return the peak memory and the source of the number.

    A device's own peak never falls. If it rises during the run, it is the peak of this run. If not, and
    on CPUs, which do not count, the number is that of the compiled program.
    """
    before = device_peak()
    run()
    after = device_peak()
    if after > before:
        return {"bytes": after, "from": "the device's count"}
    return {
        "bytes": compiled_bytes,
        "from": "the compiled program: arguments, outputs, temporaries",
    }


def machine() -> dict[str, Any]:
    """Return the facts that belong to a figure: device, versions, date."""
    target = attached()
    device = target.devices[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": target.count,
        "processor": processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "guidedflow": guidedflow.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Return the processor's name if the system gives it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
