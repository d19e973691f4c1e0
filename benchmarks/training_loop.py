"""What the training loop costs around its compiled step, and how soon the first step is done.

  .venv/bin/python benchmarks/training_loop.py --config=configs/digits.py     # about 2 minutes

Three figures: how long the loop waits for input, on the config's data and on pictures of 32×32×3 made for
it, read from PNG files; how much slower the loop is than the same compiled step called over and over on
batches that lie on the device, interval by interval in one process; and the time from starting
`guidedflow train` to the end of its first step, with programs compiled by an earlier start. Needs Linux,
which tells what other processes took meanwhile.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from guidedflow import data
from guidedflow.cli import use_compilation_cache
from guidedflow.config_files import load as load_config
from guidedflow.training import loop, metrics
from guidedflow.training.batches import Numbered
from guidedflow.training.options import Start

ROOT = Path(__file__).parents[1]
AIMS = {"waiting for input": 0.03, "host overhead": 0.02, "start to first step": 20.0}
ON_DEVICE = 8
QUIET, ENOUGH = 0.05, 5


class Others:
    """Says what share of the processors other processes took since it was last asked."""

    def __init__(self) -> None:
        self._last = self._read()

    def _read(self) -> np.ndarray:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        # All but the idle ones, user, nice, system, ..., are work; so are those of this process.
        seconds = np.array([sum(ticks) - sum(ticks[3:5]), sum(ticks)]) / os.sysconf("SC_CLK_TCK")
        return np.array([seconds[0] - time.process_time(), seconds[1]])

    def share(self) -> float:
        """Return it, between 0 and 1; 1 where less than a tick of the clock has passed."""
        now = self._read()
        work, whole = now - self._last
        self._last = now
        return float(work / whole) if whole > 0 else 1.0


class InTurn(loop.Run):
    """A run that, after every log line, calls its step as often again with nothing around it.

    The clocks of the run leave that out, so that both are measured within the same seconds.

    Attributes:
      bare: seconds of a step alone, an interval.
      disturbed: share of the processors that others took, in the loop and then alone, an interval.
    """

    bare: list[float]
    disturbed: list[tuple[float, float]]

    def _compile(self, key: jax.Array) -> Any:
        source, place = Numbered(self.setup.batches()), self.setup.strategy.place_batch
        self.batches = [place(source[i]) for i in range(ON_DEVICE)]
        self.bare, self.disturbed, self.others = [], [], Others()
        self.key, self.copy = key, jax.tree.map(jnp.copy, self.state)
        self.program = super()._compile(key)
        return self.program

    def _log(self, batches: data.Prefetch) -> None:
        super()._log(batches)
        with self._aside():
            jax.block_until_ready(self.state)
            looped, began = self.others.share(), time.perf_counter()
            for i in range(self.config.log.every):
                self.copy, numbers = self.program(self.copy, self.batches[i % ON_DEVICE], self.key)
            jax.block_until_ready((self.copy, numbers))
            self.bare.append((time.perf_counter() - began) / self.config.log.every)
            self.disturbed.append((looped, self.others.share()))


class Empty(loop.Run):
    """A run whose step does nothing, so that what is left is the loop's own work."""

    def _compile(self, key: jax.Array) -> Any:
        names = ("loss", "grad_norm", "param_norm", "learning_rate", "finite")
        numbers = {name: jnp.float32(1) for name in names}
        return lambda state, batch, key: (state, numbers)

    def _make_meter(self, batches: data.Prefetch) -> Any:
        meter = super()._make_meter(batches)
        self.began = time.process_time()
        return meter

    def _save(self) -> None:
        """Leave out the checkpoint at the end."""
        self.seconds = (time.process_time() - self.began) / self.step


def own_work(setup: loop.Setup) -> float:
    """Return the seconds of processor time a step that the loop and its input take, without the step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Empty(setup, Path(folder), Start(), display=False)
        run.fit()
    return run.seconds


def only_training(config: ConfigDict, rounds: int) -> ConfigDict:
    """Return the config without samples, evaluation and checkpoints: steps and log lines are left."""
    config.steps = config.log.every * (rounds + 1)
    config.optimizer.warm_up = min(config.optimizer.warm_up, config.steps)
    config.held_out.every = config.sample.every = 0
    config.checkpoint.every = 10 * config.steps
    return config


def measure(setup: loop.Setup, name: str) -> tuple[float, float]:
    """Return the share of the loop's time that it waits for input, and what it adds to its step.

    Medians over the quiet intervals, in which other processes took less than QUIET of the processors,
    or over all where these are few. The first, in which the input starts, is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = InTurn(setup, Path(folder), Start(), display=False)
        run.fit()
        clocks = metrics.read(Path(folder) / "throughput.jsonl")[1:]
    quiet = np.max(run.disturbed[1:], axis=1) < QUIET
    chosen = quiet if quiet.sum() >= ENOUGH else np.ones_like(quiet)
    looped = np.array([1 / line["steps_per_second"] for line in clocks])[chosen]
    bare = np.array(run.bare[1:])[chosen]
    wait = float(np.median(np.array([line["input_wait"] for line in clocks])[chosen]))
    own_work(setup)  # the first one finds cold caches
    print(
        f"{name}: {1e3 * own_work(setup):.2f} ms of processor time a step for all but the step, "
        f"{1e3 * np.median(looped):.2f} ms a step in the loop (least {1e3 * looped.min():.2f}), "
        f"{1e3 * np.median(bare):.2f} ms alone (least {1e3 * bare.min():.2f}), waiting {wait:.2%}; "
        f"{quiet.sum()} of {quiet.size} intervals were quiet, {chosen.sum()} are counted",
        flush=True,
    )
    return wait, float(np.median(looped / bare - 1))


def made_pictures(folder: Path, count: int = 2048, classes: int = 4) -> ConfigDict:
    """Write pictures of noise, 32×32×3, and return a config that trains on them."""
    draw = np.random.default_rng(0)
    for index in range(count):
        file = folder / "pictures" / str(index % classes) / f"{index:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    config = load_config("digits")
    config.dataset.name, config.dataset.image_size = f"folder:{folder / 'pictures'}", 32
    config.dataset.held_out, config.dataset.flip = "", True
    config.batch = 32
    config.log.every = 10
    return only_training(config, 6)


def first_steps(config: Path, count: int) -> Iterator[float]:
    """Yield the seconds from starting `guidedflow train` to its first step, warm caches."""
    for start in range(count + 1):
        workdir = tempfile.mkdtemp()
        command = [sys.executable, "-m", "guidedflow.cli", "train", f"--config={config}"]
        began = time.perf_counter()
        run = subprocess.Popen(
            [*command, f"--workdir={workdir}", "--config.log.every=1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = iter(run.stdout or ())
        done = any(line.startswith("step 1/") for line in lines)
        seconds = time.perf_counter() - began
        run.kill()
        run.communicate()
        shutil.rmtree(workdir)
        if not done:
            raise SystemExit(f"{' '.join(command)} ended before its first step")
        if start:  # the one before fills the caches
            yield seconds


def main() -> int:
    """Measure, print the figures beside their aims, and return 0 where all are reached."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--config", type=Path, default=ROOT / "configs" / "digits.py")
    options.add_argument("--rounds", type=int, default=15, help="intervals of both (default 15)")
    options.add_argument("--starts", type=int, default=5, help="of the program (default 5)")
    given = options.parse_args()
    use_compilation_cache()
    setup = loop.build(only_training(load_config(given.config), given.rounds))
    wait, overhead = measure(setup, given.config.stem)
    with tempfile.TemporaryDirectory() as folder:
        made = loop.build(made_pictures(Path(folder)))
        made_wait, _ = measure(made, "made pictures, 32×32×3")
    starts = list(first_steps(given.config, given.starts))
    figures = [
        ("waiting for input", f"{given.config.stem}", wait),
        ("waiting for input", "made pictures, 32×32×3", made_wait),
        ("host overhead", f"{given.config.stem}, batch {setup.config.batch}", overhead),
        ("start to first step", " ".join(f"{s:.1f}" for s in starts), statistics.median(starts)),
    ]
    for name, about, value in figures:
        shown, aim = (f"{v:.1f} s" if AIMS[name] > 1 else f"{v:.2%}" for v in (value, AIMS[name]))
        print(f"{name} ({about}): {shown}, aim under {aim}")
    return int(any(value >= AIMS[name] for name, _, value in figures))


if __name__ == "__main__":
    sys.exit(main())
