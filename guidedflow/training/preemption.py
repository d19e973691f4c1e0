"""Stopping a run on request: by SIGTERM to its process, or to any of its processes."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """Whether the run was asked to stop; at each step all processes get the same answer.

    A single process catches SIGTERM and SIGINT itself. With several processes, `jax.distributed`
    catches SIGTERM, and by its sync point all processes agree on one step at which they save.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the save
        self._asked = True

    def at(self, step: int) -> bool:
        """Return whether to save and end after `step`; all processes must call it at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
