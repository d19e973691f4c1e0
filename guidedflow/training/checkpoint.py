"""Checkpoints: orbax stores the arrays; checksums, fingerprints and the run's identity are stored too.

`checkpoints/00000120/` has `state/` (orbax), `run.json` (format, step, identity, config, and
structure and fingerprint of every leaf) and `files.json` (size and checksum of every file). It is
written as `.saving-00000120` and renamed when complete, so every numbered folder is complete.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from guidedflow.training import integrity, processes
from guidedflow.training.agreement import check_identity, check_structure
from guidedflow.training.config import completed
from guidedflow.training.state import TrainState, fingerprint, structure

FORMAT = 1
logger = logging.getLogger(__name__)


class SaveError(OSError):
    """A checkpoint could not be written; older checkpoints are not changed."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept: the newest `last`, each multiple of `every`, the `best` by `metric`.

    0 switches a rule off; only `last` must be at least 1. A lower metric is better.
    """

    last: int = 3
    every: int = 0
    best: int = 0
    metric: str = "held_out_loss"

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 0 or self.best < 0:
            raise ValueError(f"keep: last must be at least 1, every and best at least 0: {self}")

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Return the steps to keep, of those in `metrics`."""
        steps = sorted(metrics)
        keep = set(steps[-self.last :])
        if self.every:
            keep |= {step for step in steps if step % self.every == 0}
        if self.best:
            rated = [step for step in steps if np.isfinite(metrics[step].get(self.metric, np.nan))]
            keep |= set(sorted(rated, key=lambda s: (metrics[s][self.metric], s))[: self.best])
        return keep


@dataclass(frozen=True)
class Record:
    """The content of `run.json`, which is stored beside the arrays.

    Attributes:
      step: number of steps done.
      identity: values that must not change within a run, field name to JSON value.
      config: the resolved config.
      leaves: leaf path to (dtype and shape, fingerprint).
      metrics: the metrics that `Keep.best` compares.
      pending: metrics of the steps since the last log line, so that a resumed log is exactly the same.
      format: version of this layout.
    """

    step: int
    identity: dict[str, Any]
    config: dict[str, Any]
    leaves: dict[str, tuple[str, int]]
    metrics: dict[str, float] = field(default_factory=dict)
    pending: list[dict[str, float]] = field(default_factory=list)
    format: int = FORMAT


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def path_of(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"{step:08d}"


def read_record(path: Path) -> Record:
    """Read `run.json` of one checkpoint.

    Raises:
      ValueError: a newer version of the program wrote it.
    """
    raw = json.loads((path / "run.json").read_text())
    if raw["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer guidedflow (format {raw['format']}, this one reads "
            f"up to {FORMAT}); upgrade guidedflow"
        )
    raw["leaves"] = {name: tuple(value) for name, value in raw["leaves"].items()}
    raw["identity"] = completed(raw["identity"], raw["config"])
    return Record(**raw)


class Damaged(Exception):
    """A checkpoint does not contain what was saved."""


def _load(path: Path, record: Record, abstract: TrainState, only: str | None) -> TrainState:
    """Read the arrays and compare their fingerprints; with `only`, read one field of the state."""
    if only:
        others = {name: getattr(abstract, name) for name in abstract._fields if name != only}
        skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, others)
        abstract = abstract._replace(**skipped)
    problem = None
    try:
        state = ocp.load(path / "state", abstract)
    except Exception as error:  # orbax and tensorstore raise many kinds for unreadable data
        problem = f"it cannot be read: {_first_line(error)}"
    _agree(problem)
    for name, value in fingerprint({only: getattr(state, only)} if only else state).items():
        if value != record.leaves[name][1]:
            raise Damaged(f"{name} is not what was saved (fingerprint {value})")
    return state


def _agree(problem: str | None) -> None:
    """Raise `Damaged` in every process when one of them has a problem."""
    if processes.any_of(problem is not None):
        raise Damaged(problem or "another process found damage")


def _verified(path: Path) -> Record:
    _agree(integrity.damage(path) if processes.is_lead() else None)
    return read_record(path)


def restore(
    folder: Path,
    abstract: TrainState,
    identity: Mapping[str, Any] | None = None,
    *,
    override: Collection[str] = (),
    only: str | None = None,
    repair: bool = False,
    say: Callable[[str], None] = logger.warning,
) -> tuple[TrainState, Record] | None:
    """Return the newest undamaged checkpoint and its record, or None if there is no checkpoint.

    Checkpoints are tried from the newest to the oldest. A damaged one is reported and, with `repair`,
    renamed. A checkpoint of another run, model or version raises at once, because an older one would
    be no better.

    Args:
      folder: the run's `checkpoints` folder.
      abstract: shapes, dtypes and shardings wanted; these may differ from those saved with.
      identity: what must match; None accepts any run of the same structure.
      override: fields of `identity` that may differ.
      only: read this field of the state alone (`"ema"` for sampling); the others stay placeholders.
      repair: rename damaged checkpoints; only for the run that owns the folder.
      say: called with one line for every damaged checkpoint.
    Raises:
      ValueError: identity or structure differ, the format is newer, or all checkpoints are damaged.
    """
    steps = processes.as_lead_sees(steps_in(folder))
    for step in reversed(steps):
        path = path_of(folder, step)
        try:
            record = _verified(path)
            if identity is not None:
                check_identity(path, record.identity, identity, override)
            found = {name: shape for name, (shape, _) in record.leaves.items()}
            check_structure(path, found, structure(abstract))
            return _load(path, record, abstract, only), record
        except Damaged as error:
            processes.barrier(f"damaged-{step}")
            aside = ""
            if repair and processes.is_lead():
                aside = f"; set aside as {integrity.set_aside(path).name}"
            processes.barrier(f"aside-{step}")
            say(f"checkpoint {path} is damaged: {error}{aside}")
    if steps:
        raise ValueError(f"every checkpoint in {folder} is damaged ({len(steps)} of them)")
    return None


class Checkpointer:
    """Writes the checkpoints of one run in the background, one at a time.

    All processes of the run call `save` at the same steps; process 0 commits and deletes.
    """

    def __init__(self, folder: Path, identity: dict, config: dict, keep: Keep) -> None:
        self.folder, self.identity, self.config, self.keep = folder, identity, config, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future | None = None
        if processes.is_lead():
            folder.mkdir(parents=True, exist_ok=True)
            for left in [*folder.glob(".saving-*"), *folder.glob(".deleting-*")]:
                shutil.rmtree(left, ignore_errors=True)
        processes.barrier("checkpoint folder")
        # The folder is not listed again: while process 0 commits a step, processes could see different lists.
        self._saved = set(processes.as_lead_sees(steps_in(folder)))

    def save(
        self,
        state: TrainState,
        metrics: dict[str, float] | None = None,
        pending: list[dict[str, float]] | None = None,
    ) -> None:
        """Start saving a step, only once per step; it blocks only while arrays are copied to the host.

        Raises:
          SaveError: this save could not start, or the previous save failed.
        """
        self.wait()
        step = int(state.step)
        final, staging = path_of(self.folder, step), self.folder / f".saving-{step:08d}"
        if step in self._saved:
            return
        self._saved.add(step)
        hashes = fingerprint(state)
        leaves = {name: (shape, hashes[name]) for name, shape in structure(state).items()}
        record = Record(step, self.identity, self.config, leaves, metrics or {}, pending or [])
        try:
            if processes.is_lead():
                staging.mkdir(parents=True)
            processes.barrier(f"staging-{step}")
            response = ocp.save_async(staging / "state", state)
        except Exception as error:
            raise _save_error(final, error) from error
        self._saving = self._thread.submit(self._finish, response, record, staging, final)

    def _finish(self, response: ocp.AsyncResponse, record: Record, staging: Path, final: Path):
        try:
            response.result()
            if processes.is_lead():
                (staging / "run.json").write_text(json.dumps(asdict(record)))
                integrity.commit(staging, final)
                self._forget()
        except Exception as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise _save_error(final, error) from error

    def _forget(self) -> None:
        """Delete the checkpoints that the policy does not keep."""
        steps = steps_in(self.folder)
        metrics = {}
        for step in steps:
            try:
                metrics[step] = read_record(path_of(self.folder, step)).metrics
            except (OSError, ValueError, KeyError, TypeError):
                metrics[step] = {}  # damaged: restoring will say so
        for step in set(steps) - self.keep.kept(metrics):
            integrity.remove(path_of(self.folder, step))

    def poll(self) -> None:
        """Raise the error of a save that has failed in the meantime."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
          SaveError: the save failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()


def _save_error(path: Path, error: Exception) -> SaveError:
    # Tensorstore's messages are long, and Python's begin with an error number instead of the reason.
    code = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
    reason = os.strerror(int(code[1] or code[2])) if code else _first_line(error)
    return SaveError(f"cannot write checkpoint {path}: {reason}")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
