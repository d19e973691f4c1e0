"""Loading batches ahead of the training step and putting them on devices, in background threads."""

import collections
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

import jax


class Indexed(Protocol):
    """Returns the batch of a step; `Batches` is one."""

    def __getitem__(self, step: int) -> Any: ...


class Prefetch:
    """An endless iterator over (step, batch on devices), `depth` batches ahead of its reader.

    An exception while loading a step is raised when the reader reaches that step.  Use it in a `with`
    block, or call `close()`: both end its threads and processes.

    Attributes:
      waited: seconds that the reader has waited for input, including the first batch.
    """

    def __init__(
        self,
        batches: Indexed,
        start: int,
        device_put: Callable[[Any], Any],
        depth: int,
        threads: int,
        processes: int,
    ):
        self.waited = 0.0
        self._batches = batches
        self._device_put = device_put
        self._next_step = start
        self._pending: collections.deque[tuple[int, Future]] = collections.deque()
        # Spawned, not forked: a fork of a process that runs JAX can deadlock.
        self._processes = (
            ProcessPoolExecutor(
                processes, get_context("spawn"), initializer=_keep, initargs=(batches,)
            )
            if processes
            else None
        )
        self._threads = ThreadPoolExecutor(
            max(threads, processes), thread_name_prefix="guidedflow-input"
        )
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        step = self._next_step
        self._next_step += 1
        self._pending.append((step, self._threads.submit(self._produce, step)))

    def _produce(self, step: int) -> Any:
        if self._processes is None:
            return self._device_put(self._batches[step])
        return self._device_put(self._processes.submit(_kept, step).result())

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        if not self._pending:
            raise StopIteration
        step, future = self._pending.popleft()
        began = time.perf_counter()
        try:
            batch = future.result()
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError(
                f"an input worker process died while loading step {step}; it may have run out of "
                "memory, or the main script lacks `if __name__ == '__main__':`"
            ) from error
        except BaseException:
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - began
        self._submit()
        return step, batch

    def close(self) -> None:
        """Cancel loading and end the threads and processes; it may be called twice."""
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefetch(
    batches: Indexed,
    start: int = 0,
    device_put: Callable[[Any], Any] = jax.device_put,
    *,
    depth: int = 2,
    threads: int = 1,
    processes: int = 0,
) -> Prefetch:
    """Iterate over (step, device_put(batches[step])) from `start` on; batches are loaded ahead.

    The order and content do not depend on `depth`, `threads` or `processes`.

    Args:
      batches: returns the batch of any step.
      start: first step.
      device_put: host batch to device batch, called on a background thread; it need not block.
      depth: number of batches that are ready or loading, at least 1.
      threads: background threads; more than one helps if examples are decoded from files.
      processes: worker processes that load instead of the threads, for decoding that holds Python's
        global lock. They are spawned, so the script that uses them must be importable.
    Returns:
      a `Prefetch`: iterate over it, read `.waited`, close it.
    Raises:
      ValueError: a number is out of range.
    """
    for name, value, low in (
        ("start", start, 0),
        ("depth", depth, 1),
        ("threads", threads, 1),
        ("processes", processes, 0),
    ):
        if not isinstance(value, int) or value < low:
            raise ValueError(f"expected {name} as an integer from {low} on, got {value!r}")
    return Prefetch(batches, start, device_put, depth, threads, processes)


_worker_batches: Indexed


def _keep(batches: Indexed) -> None:
    global _worker_batches
    _worker_batches = batches


def _kept(step: int) -> Any:
    return _worker_batches[step]
