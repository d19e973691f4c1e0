"""Stopping when asked: SIGTERM in one process, or to any process of several."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """Whether the run has been asked to stop, the same answer in every process at a step.

    A single process catches SIGTERM and SIGINT itself. With several, `jax.distributed` has caught
    SIGTERM, and its sync point agrees on one step at which all of them save.
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
        """Return whether to save and end after `step`; every process asks at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
