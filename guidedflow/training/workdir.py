"""The folder of a run: who may write to it, and what stands in it.

`config.json` the resolved config, `examples.json` what the examples are (and `decoder.npz`, of
latents), `checkpoints/`, `metrics.jsonl` what a run computes (bit-identical
for the same run), `throughput.jsonl` what clocks say, `history.jsonl` what was changed on purpose when
the run was resumed, and what it began with, `samples/` and `loss.png`, `tensorboard/`.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guidedflow.conditions import describe
from guidedflow.data import Dataset
from guidedflow.files import naming, replacing

CONFIG, EXAMPLES, DECODER = "config.json", "examples.json", "decoder.npz"
_VERSION = 1


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Own `workdir` while the block runs; the lock goes with the process, however it ends.

    Raises:
      ValueError: another live process owns it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # Without a buffer, which on a full disk would fail once more when the file is closed.
    with (workdir / "lock").open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().decode().strip() or "another process"
            raise ValueError(f"{workdir} is in use by a live run ({owner})") from None
        with naming(workdir / "lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def write_config(workdir: Path, resolved: dict[str, Any]) -> None:
    """Write the resolved config as JSON."""
    with replacing(workdir / CONFIG) as temporary:
        temporary.write_text(json.dumps(resolved, indent=2) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the resolved config of a run.

    Raises:
      ValueError: the folder holds no run.
    """
    try:
        return json.loads((workdir / CONFIG).read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{workdir} holds no run (no {CONFIG}); train one with "
            f"guidedflow train --config=… --workdir={workdir}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{workdir / CONFIG} is damaged: {error}") from None


def write_examples(workdir: Path, dataset: Dataset) -> None:
    """Write what the examples are, so that what is trained can be used without them."""
    decoder = None
    if dataset.decoder is not None:
        with replacing(workdir / DECODER) as temporary:
            decoder = dataset.decoder.save(temporary)
    facts = {
        "version": _VERSION,
        "image_shape": list(dataset.image_shape),
        "condition": describe(dataset.condition),
        "decoder": decoder,
    }
    with replacing(workdir / EXAMPLES) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def read_examples(workdir: Path) -> dict[str, Any] | None:
    """Return what `write_examples` wrote; None of a run that is older than that file.

    Raises:
      ValueError: the file is damaged, or of a newer version.
    """
    file = workdir / EXAMPLES
    try:
        facts = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if facts.get("version") != _VERSION:
        raise ValueError(f"{file} is of version {facts.get('version')}, expected {_VERSION}")
    return facts


def checkpoints(workdir: Path) -> Path:
    """Return the folder of the checkpoints, absolute as orbax wants it."""
    return workdir.absolute() / "checkpoints"
