"""What the training loop costs around its compiled step, and how soon the first step is done.

  .venv/bin/python benchmarks/training_loop.py --config=configs/digits.py     # about 2 minutes

Three figures: how long the loop waits for input, on the config's data and on pictures of 32×32×3
made for it, read from PNG files; how much slower the loop is than the same compiled step called over
and over on batches that lie on the device, both in turn in one process; and the time from starting
`guidedflow train` to the end of its first step, with programs compiled by an earlier start.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from guidedflow.cli import use_compilation_cache
from guidedflow.commands.train import load_config
from guidedflow.training import loop, metrics
from guidedflow.training.batches import Numbered

ROOT = Path(__file__).parents[1]
AIMS = {"waiting for input": 0.03, "host overhead": 0.02, "start to first step": 20.0}
# Intervals of a run; the first holds the start of the input and is left out.
INTERVALS = 6
ON_DEVICE = 8


class Shared(loop.Run):
    """A run whose step is compiled once for all rounds."""

    programs: ClassVar[dict[int, Any]] = {}

    def _compile(self, key: jax.Array) -> Any:
        if id(self.task) not in self.programs:
            self.programs[id(self.task)] = super()._compile(key)
        return self.programs[id(self.task)]


def only_training(config: ConfigDict, interval: int) -> ConfigDict:
    """Return the config without samples, evaluation and checkpoints: steps and log lines are left."""
    config.steps = interval * INTERVALS
    config.optimizer.warm_up = min(config.optimizer.warm_up, config.steps)
    config.log.every = interval
    config.held_out.every = config.sample.every = 0
    config.checkpoint.every = 10 * config.steps
    return config


def run_loop(task: loop.Task) -> list[dict[str, float]]:
    """Train in a new workdir; return the clocks of every interval but the first."""
    with tempfile.TemporaryDirectory() as folder:
        Shared(task, Path(folder), resume=False, display=False).fit()
        return metrics.read(Path(folder) / "throughput.jsonl")[1:]


def run_bare(task: loop.Task) -> list[float]:
    """Call the same compiled step on batches on the device; return the seconds a step, as above."""
    state, key = jax.jit(task.init)(jax.random.key(0)), jax.random.key(task.config.seed)
    source = Numbered(task.batches())
    batches = [task.strategy.place_batch(source[i]) for i in range(ON_DEVICE)]
    compiled, seconds = Shared.programs[id(task)], []
    for _ in range(INTERVALS):
        began = time.perf_counter()
        for i in range(task.config.log.every):
            state, numbers = compiled(state, batches[i % ON_DEVICE], key)
        jax.block_until_ready((state, numbers))
        seconds.append((time.perf_counter() - began) / task.config.log.every)
    return seconds[1:]


def compare(task: loop.Task, rounds: int, name: str) -> tuple[float, float]:
    """Run the loop and the bare step in turn; return the share of time spent waiting and on the host."""
    waits, ratios = [], []
    for _ in range(rounds):
        clocks, bare = run_loop(task), run_bare(task)
        looped = statistics.median(1 / line["steps_per_second"] for line in clocks)
        waits += [line["input_wait"] for line in clocks]
        ratios.append(looped / statistics.median(bare) - 1)
        print(
            f"{name}: {1e3 * looped:.2f} ms a step in the loop, "
            f"{1e3 * statistics.median(bare):.2f} ms alone, "
            f"waiting {statistics.median(line['input_wait'] for line in clocks):.2%}",
            flush=True,
        )
    return statistics.median(waits), statistics.median(ratios)


def made_pictures(folder: Path, count: int = 2048, classes: int = 4) -> ConfigDict:
    """Write pictures of noise, 32×32×3, and return a config that trains on them."""
    draw = np.random.default_rng(0)
    for index in range(count):
        file = folder / "pictures" / str(index % classes) / f"{index:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    config = load_config(ROOT / "configs" / "digits.py")
    config.dataset.name, config.dataset.image_size = f"folder:{folder / 'pictures'}", 32
    config.dataset.held_out, config.dataset.flip = "", True
    config.batch = 32
    return only_training(config, 10)


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
    options.add_argument("--rounds", type=int, default=5, help="of loop and bare step (default 5)")
    options.add_argument("--starts", type=int, default=5, help="of the program (default 5)")
    options.add_argument("--interval", type=int, default=25, help="steps a log line (default 25)")
    given = options.parse_args()
    use_compilation_cache()
    task = loop.build(only_training(load_config(given.config), given.interval))
    wait, overhead = compare(task, given.rounds, given.config.stem)
    with tempfile.TemporaryDirectory() as folder:
        made = loop.build(made_pictures(Path(folder)))
        made_wait, _ = compare(made, 1, "made pictures, 32×32×3")
    starts = list(first_steps(given.config, given.starts))
    figures = [
        ("waiting for input", f"{given.config.stem}", wait),
        ("waiting for input", "made pictures, 32×32×3", made_wait),
        ("host overhead", f"{given.config.stem}, batch {task.config.batch}", overhead),
        ("start to first step", " ".join(f"{s:.1f}" for s in starts), statistics.median(starts)),
    ]
    for name, about, value in figures:
        shown, aim = (f"{v:.1f} s" if AIMS[name] > 1 else f"{v:.2%}" for v in (value, AIMS[name]))
        print(f"{name} ({about}): {shown}, aim under {aim}")
    return int(any(value >= AIMS[name] for name, _, value in figures))


if __name__ == "__main__":
    sys.exit(main())
