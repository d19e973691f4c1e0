"""Options that several subcommands share, and what they say when they are not what they should be."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from guidedflow.bundle import Bundle
from guidedflow.conditions import Condition, entries
from guidedflow.pipelines import GRIDS, GUIDANCE, SOLVERS, WEAKER, Method
from guidedflow.training import load, processes
from guidedflow.types import check_number

# Seconds between plain lines where there is no terminal.
_PAUSE = 10.0


def integer(low: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` on."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {value}")
        return value

    return read


def words(text: str) -> list[str]:
    """Read numbers or names between commas, at least one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected labels as 0,1,2 or cat,dog, got {text!r}")
    return parts


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
        check_number("it", value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}") from None
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Read finite numbers between commas, at least one."""
    return tuple(number(part) for part in text.split(","))


def told_options(options: argparse.ArgumentParser) -> None:
    """Add what a model is told."""
    options.add_argument(
        "--labels", type=words, help="classes, as 0,1,2 or cat,dog (default: all there are)"
    )
    options.add_argument("--prompt", help="a text, for a run that was told captions")
    options.add_argument("--prompts", type=Path, help="a file of them, one a line")
    options.add_argument("--negative", help="a prompt that guidance leads away from")


def asked_of(given: argparse.Namespace, condition: Condition) -> list[Any]:
    """Return what the options ask for, as the condition parses it; everything where they do not.

    Raises:
      ValueError: two of them, a file without prompts, a condition that is not told that way, or
        nothing where there is no list of everything.
    """
    named = [name for name in ("labels", "prompt", "prompts") if getattr(given, name) is not None]
    if len(named) > 1:
        raise ValueError(f"pass --{named[0]} or --{named[1]}, not both")
    if given.prompt is not None:
        return entries(condition, "prompts", [given.prompt])
    if given.prompts is not None:
        return entries(condition, "prompts", _lines(given.prompts))
    if given.labels and condition.gives & {"label", "prompts"}:
        return entries(condition, "label", given.labels)
    asked = given.labels or condition.every()
    if not asked:
        option = '--prompt="…"' if "prompts" in condition.gives else "--labels=…"
        raise ValueError(f"say what to draw, {option}: what this run is told has no list")
    return asked


def negative_of(given: argparse.Namespace, condition: Condition) -> Any:
    """Return the negative prompt as the condition parses it, or None.

    Raises:
      ValueError: the condition has no prompts, or guidance does not look at the null.
    """
    if given.negative is None:
        return None
    if given.guidance == "none" or (given.scale == 1 and not given.unconditional):
        raise ValueError("--negative is looked at by guidance alone; take a --scale other than 1")
    return entries(condition, "prompts", [given.negative])[0]


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts {file}: {error}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{file} holds no prompt")
    return prompts


def method_options(options: argparse.ArgumentParser, steps: int) -> None:
    """Add what `sample` and `evaluate` share."""
    options.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    options.add_argument(
        "--solver", default="heun", help=f"one of {', '.join(SOLVERS)} (default heun)"
    )
    options.add_argument(
        "--steps", type=integer(1), default=steps, help=f"of the solver (default {steps})"
    )
    options.add_argument("--grid", default="uniform", help=f"of times: {', '.join(GRIDS)}")
    options.add_argument(
        "--guidance", default="classifier-free", help=f"one of {', '.join([*GUIDANCE, *WEAKER])}"
    )
    options.add_argument(
        "--reference", type=Path, help="workdir of the weaker run that autoguidance leads away from"
    )
    options.add_argument(
        "--unconditional", action="store_true", help="leave the label out of the model"
    )
    options.add_argument(
        "--classifier", type=Path, help="workdir of a classifier, whose gradient is added"
    )
    options.add_argument(
        "--classifier_scale", type=number, help="of that gradient (default 1; 0: none)"
    )
    options.add_argument(
        "--interval", type=numbers, help="guide only between two times, as 0.1,0.9 (t = 1 is data)"
    )
    options.add_argument("--seed", type=integer(0), default=0, help="of the noise (default 0)")
    options.add_argument(
        "--batch", type=integer(1), default=250, help="images at a time (default 250)"
    )
    options.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="averaged parameters, or the newest",
    )
    options.add_argument(
        "--distributed",
        action="store_true",
        help="join the cluster's processes, or by these three:",
    )
    options.add_argument("--coordinator", help="host:port of process 0")
    options.add_argument("--process_count", type=integer(1), help="processes in all")
    options.add_argument("--process_index", type=integer(0), help="this process, from 0")


def join_processes(given: argparse.Namespace) -> Callable[..., None]:
    """Join the other processes that the options name; return `print`, silent but in process 0.

    Raises:
      ValueError: the options do not go together, or name no cluster.
    """
    processes.join(
        given.coordinator,
        given.process_count,
        given.process_index,
        cluster=given.distributed,
        saves=False,
    )
    return print if processes.is_lead() else lambda *line: None


def method_of(given: argparse.Namespace, scale: float) -> Method:
    """Return the method that the options ask for, at one scale.

    Raises:
      ValueError: an unknown name, or numbers out of range.
    """
    interval = given.interval
    if interval is not None and len(interval) != 2:
        raise ValueError(f"--interval takes two times, as 0.1,0.9, got {len(interval)}")
    if given.classifier_scale is not None and given.classifier is None:
        raise ValueError("--classifier_scale needs --classifier=WORKDIR")
    if (given.reference is None) == (given.guidance == "autoguidance"):
        raise ValueError("--guidance=autoguidance and --reference=WORKDIR go together")
    return Method(
        scale=scale,
        interval=interval,
        solver=given.solver,
        steps=given.steps,
        grid=given.grid,
        guidance=given.guidance,
        unconditional=given.unconditional,
        classifier_scale=1.0 if given.classifier_scale is None else given.classifier_scale,
    )


def helpers_of(
    given: argparse.Namespace, bundle: Bundle, say: Callable[..., None] = print
) -> dict[str, Any]:
    """Return the other runs that the options name, as `pipelines.sample` takes them.

    Raises:
      ValueError: one is missing, or does not fit the run that is sampled.
    """
    weaker = load.load(given.reference, ema=given.ema, say=say) if given.reference else None
    classifier = None
    if given.classifier:
        classifier = load.load_classifier(given.classifier, bundle, ema=given.ema, say=say)
    return {"weaker": weaker, "classifier": classifier}


class Progress:
    """Counts images: a bar on a terminal, elsewhere a line now and then for long jobs.

    Silent but in process 0.
    """

    def __init__(self, total: int, label: str = "") -> None:
        self._total, self._label, self._done = total, label, 0
        self._begin = self._said = time.monotonic()
        self._pause = _PAUSE if processes.is_lead() else float("inf")
        self._bar = (
            tqdm(total=total, desc=label or None, unit="image", dynamic_ncols=True)
            if sys.stderr.isatty() and processes.is_lead()
            else None
        )

    def __call__(self, count: int) -> None:
        """Count `count` more images."""
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self._said > self._pause and self._done < self._total:
            self._said = now
            left = (now - self._begin) / self._done * (self._total - self._done)
            line = f"{self._label} {self._done}/{self._total} images, {left:.0f} s left"
            print(line.strip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
