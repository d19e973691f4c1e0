"""The logs of a run: JSON lines, TensorBoard, Weights & Biases, and a progress line or bar."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from guidedflow.files import naming, replacing

Pending = list[dict[str, float]]


def summarize(pending: Pending) -> dict[str, float]:
    """Reduce the metrics of the steps since the last log line to one record.

    `loss` and `grad_norm` are means over the steps whose update was finite, `skipped` counts the
    others; everything else is the newest value.
    """
    record = {name: value for name, value in pending[-1].items() if name != "finite"}
    finite = [step for step in pending if step["finite"]]
    for name in ("loss", "grad_norm"):
        record[name] = float(np.mean([step[name] for step in finite])) if finite else float("nan")
    record["skipped"] = len(pending) - len(finite)
    return record


class Sink(Protocol):
    """A log that takes records."""

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Flush and close."""


class JsonLines:
    """One JSON object per line, beginning with its step.

    When a run resumes from `start`, lines of later steps are removed first; the run computes these
    steps again and gets the same numbers.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                # A kill during a write leaves an incomplete last line.
                if not line.endswith("\n") or json.loads(line)["step"] > start:
                    break
                kept.append(line)
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))
        self._path, self._file = path, path.open("a")

    def write(self, step: int, record: Mapping[str, float]) -> None:
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **record}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):  # on a full disk, closing tries to write the last line again
            self._file.close()


class TensorBoard:
    """Event files; events of an earlier run after `start` are marked as invalid."""

    def __init__(self, folder: Path, start: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run, which resumes under the workdir's name."""

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]) -> None:
        try:
            import wandb  # an optional extra, which most runs do not use
        except ImportError:
            raise ValueError("config.log.wandb is set: pip install 'guidedflow[wandb]'") from None
        name = workdir.resolve().name
        self._run = wandb.init(project=project, id=name, resume="allow", config=config)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


def read(path: Path) -> list[dict[str, float]]:
    """Return the records of a JSON-lines file; an empty list if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Display:
    """A progress bar on a terminal, plain lines elsewhere, nothing if `quiet`."""

    def __init__(self, start: int, steps: int, quiet: bool) -> None:
        self._steps, self._quiet = steps, quiet
        terminal = sys.stderr.isatty() and not quiet
        self._bar = (
            tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) if terminal else None
        )

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show the numbers of a log line."""
        rate, images = numbers["steps_per_second"], numbers["images_per_second"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"{images:.0f} images/s, loss {numbers['loss']:.4f}")
            return
        left = tqdm.format_interval((self._steps - step) / rate)
        self.say(
            f"step {step}/{self._steps}  loss {numbers['loss']:.4f}  {rate:.2f} steps/s  "
            f"{images:.0f} images/s  waiting for input {numbers['input_wait']:.1%}  left {left}"
        )

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
