"""Several processes of one job: joining, waiting, and choosing the process that writes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds until the other processes notice that a process has died, and stop waiting for it at the end.
PATIENCE = 30


def join(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    cluster: bool = False,
    saves: bool = True,
) -> None:
    """Initialise JAX's distributed runtime, if it is requested and not yet initialised.

    Args:
      coordinator, process_count, process_index: host:port of process 0, the number of processes, and
        the index of this one from 0; give all of them or none.
      cluster: let JAX detect them from the cluster.
      saves: whether SIGTERM requests a save, which `preemption.StopRequests` waits for; otherwise it
        ends the process as usual.
    Raises:
      ValueError: some of the three are missing, or no cluster is found.
    """
    explicit = (coordinator, process_count, process_index)
    if any(value is None for value in explicit) and any(value is not None for value in explicit):
        raise ValueError("--coordinator, --process_count and --process_index go together")
    if (coordinator is None and not cluster) or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", saves)
    timeouts: dict[str, Any] = {
        "heartbeat_timeout_seconds": PATIENCE,
        "shutdown_timeout_seconds": PATIENCE,
    }
    if coordinator is not None:
        jax.distributed.initialize(*explicit, **timeouts)
        return
    try:
        jax.distributed.initialize(**timeouts)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no cluster ({error}); give --coordinator=host:port "
            "--process_count=N --process_index=I instead"
        ) from error


def is_lead() -> bool:
    """Whether this process is the one that writes files and messages."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached this point, as long as all are alive."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def as_lead_sees(numbers: Sequence[int]) -> list[int]:
    """Return the numbers of process 0, because another host may see an older state of a shared folder."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    if not count:
        return []
    ours = np.asarray(numbers, np.int32) if is_lead() else np.zeros(count, np.int32)
    return [int(number) for number in multihost_utils.broadcast_one_to_all(ours)]
