"""Speed of a run: steps and images per second, input wait, FLOP utilisation, memory."""

import time
from typing import Any

import jax
import jax.numpy as jnp


def matmul_peak(dtype: Any, platform: str, size: int = 0, seconds: float = 0.2) -> float:
    """Measure the FLOP/s of square matmuls on one device, to which utilisation is relative.

    Args:
      dtype: of the operands; the network's compute dtype.
      platform: of the device.
      size: side of the matrices; 0 for 1024 on CPU and 8192 elsewhere.
      seconds: how long to measure, after one run to compile.
    """
    size = size or (1024 if platform == "cpu" else 8192)
    operand = jnp.full((size, size), 1e-3, dtype)
    product = jax.jit(jnp.matmul)
    product(operand, operand).block_until_ready()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        product(operand, operand).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def memory(device: jax.Device) -> dict[str, float]:
    """Return the bytes in use and their peak on a device, if it counts them."""
    stats = device.memory_stats() or {}
    names = {"bytes_in_use": "memory_bytes", "peak_bytes_in_use": "memory_peak_bytes"}
    return {ours: float(stats[theirs]) for theirs, ours in names.items() if theirs in stats}


class Meter:
    """Measures throughput over the intervals between log lines.

    Args:
      batch: images per step, over all devices.
      flops: operations of the model in one step on one device; 0 if unknown.
      peak: FLOP/s of one device; 0 leaves utilisation out.
      device: the device whose memory is read; None leaves it out.
    """

    def __init__(
        self, batch: int, flops: float, peak: float, device: jax.Device | None = None
    ) -> None:
        self._batch, self._flops, self._peak, self._device = batch, flops, peak, device
        self.restart(0.0)

    def restart(self, waited: float) -> None:
        """Begin an interval; `waited` is the time waited for input since the start, in seconds."""
        self._began, self._waited, self._steps = time.perf_counter(), waited, 0
        self._paused = 0.0

    def count(self) -> None:
        """Count one step."""
        self._steps += 1

    def pause(self, began: float) -> None:
        """Exclude the time since `began`, because samples and evaluation are not training."""
        self._paused += time.perf_counter() - began

    def read(self, waited: float) -> dict[str, float]:
        """End the interval, begin the next, and return its numbers."""
        seconds = max(time.perf_counter() - self._began - self._paused, 1e-9)
        rate = self._steps / seconds
        numbers = {
            "steps_per_second": rate,
            "images_per_second": rate * self._batch,
            "input_wait": (waited - self._waited) / seconds,
            **(memory(self._device) if self._device else {}),
        }
        if self._peak and self._flops:
            numbers["model_flop_utilisation"] = rate * self._flops / self._peak
        self.restart(waited)
        return numbers
