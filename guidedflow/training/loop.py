"""The training loop: batches, the compiled step, checkpoints, logs and sample grids."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from guidedflow import data
from guidedflow.training import config as configs
from guidedflow.training import grids, metrics, plots, processes, throughput, workdir
from guidedflow.training.batches import HeldOut, Numbered
from guidedflow.training.build import Setup, build
from guidedflow.training.checkpoint import Checkpointer, Keep, steps_in
from guidedflow.training.options import Start
from guidedflow.training.preemption import StopRequests
from guidedflow.training.start import (
    changes,
    check_override,
    settled_for,
    start_state,
    warm_parameters,
    write_history,
)
from guidedflow.training.state import TrainState, state_bytes
from guidedflow.training.warm_start import Parameters

# Number of steps that may run at once. It is large enough that no device waits for Python, and small
# enough that virtual CPU devices, which share one thread pool, do not block each other.
IN_FLIGHT = 2


@dataclass
class Outcome:
    """The result of a run: its state, and whether it was stopped before its last step."""

    state: TrainState
    stopped: bool


class Run:
    """One run in a workdir, from its first or a resumed step to its last."""

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        start: Start,
        warm: Parameters | None = None,
        display: bool = True,
    ) -> None:
        self.setup, self.folder, self.config = setup, folder, setup.config
        self.lead = processes.is_lead()
        say = print if self.lead and display else (lambda line: None)
        checkpoints = workdir.checkpoints(folder)
        self.state, record = start_state(
            setup, checkpoints, start.resume, say, start.override, warm
        )
        self.step = record.step if record else 0
        self.pending: metrics.Pending = list(record.pending) if record else []
        self.rated: dict[str, float] = dict(record.metrics) if record else {}
        if record:
            say(f"resumed from step {self.step}")
        changed = changes(setup, start, record)
        if changed and self.lead:
            say(write_history(folder, self.step, changed))
        options = self.config.checkpoint
        self.checkpointer = Checkpointer(
            checkpoints,
            setup.identity,
            configs.resolved(self.config),
            Keep(options.keep_last, options.keep_every, options.keep_best),
        )
        self.display = metrics.Display(self.step, self.config.steps, not (self.lead and display))
        self.sinks = self._open_sinks() if self.lead else []
        self.clocks = (
            metrics.JsonLines(folder / "throughput.jsonl", self.step) if self.lead else None
        )
        self.in_flight: deque[dict[str, Array]] = deque()
        self.held_out = HeldOut(setup) if setup.held_out and self.config.held_out.every else None
        shows = self.config.sample.every and setup.task.output == "field"
        shown = plots.shown(setup) if shows else None
        self.sampler = plots.make_sampler(setup, shown) if shows else None
        self.columns = setup.parts.condition.say(shown) if shows else []

    def _open_sinks(self) -> list[metrics.Sink]:
        log, start = self.config.log, self.step
        online: list[metrics.Sink] = []
        if log.wandb:  # first: if it is not installed, no other file is open yet
            resolved = configs.resolved(self.config)
            online.append(metrics.WeightsAndBiases(log.wandb, self.folder, resolved))
        sinks: list[metrics.Sink] = [metrics.JsonLines(self.folder / "metrics.jsonl", start)]
        if log.tensorboard:
            sinks.append(metrics.TensorBoard(self.folder / "tensorboard", start))
        return sinks + online

    def fit(self) -> Outcome:
        """Train to the last step, or to the step at which a stop was requested.

        Raises:
          FloatingPointError: a loss or gradient was not finite and the config says to stop.
          SaveError: a checkpoint could not be written.
        """
        with ExitStack() as stack:
            stops = stack.enter_context(StopRequests())
            stack.callback(self._close)
            if self.step >= self.config.steps:
                self.display.say(f"nothing to do: the run is at its last step, {self.step}")
                return Outcome(self.state, False)
            batches = stack.enter_context(self._input())
            key = jax.random.key(self.config.seed)
            compiled = self._compile(key)
            self.meter = self._make_meter(batches)
            for step, batch in batches:
                with self._profiled(step):
                    self.state, numbers = compiled(self.state, batch, key)
                self._after_step(numbers, batches)
                if stops.at(self.step):
                    self._settle()
                    self._save()
                    self._finish()
                    self.display.say(f"stopped as asked, saved step {self.step}")
                    return Outcome(self.state, True)
                if self.step == self.config.steps:
                    break
            self._finish()
        return Outcome(self.state, False)

    def _finish(self) -> None:
        """Wait for the last save; no process ends before process 0 has committed it."""
        self.checkpointer.wait()
        processes.barrier("the run has ended")

    def _input(self) -> data.Prefetch:
        options = self.config.input
        return data.prefetch(
            Numbered(self.setup.batches()),
            self.step,
            self.setup.strategy.place_batch,
            depth=options.depth,
            threads=options.threads,
            processes=options.processes,
        )

    def _compile(self, key: Array) -> Any:
        began = time.perf_counter()
        strategy = self.setup.strategy
        batch = strategy.place_batch(Numbered(self.setup.batches())[self.step])
        compiled = strategy.compile(self.setup.step(), self.state, batch, key)
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        target = self.setup.target
        share = max(state_bytes(self.state, device) for device in target.local) / total
        self.display.say(
            f"{count:,} parameters on {target.count} {target.platform} devices, "
            f"{share:.1%} of the state's {total:,} bytes on each; "
            f"compiled in {time.perf_counter() - began:.1f} s"
        )
        return compiled

    def _make_meter(self, batches: data.Prefetch) -> throughput.Meter:
        flops = peak = 0.0
        if self.lead:  # only the lead process writes the throughput
            target = self.setup.target
            flops = self.setup.flops() / target.count
            dtype = getattr(self.setup.network, "dtype", jnp.float32)
            peak = throughput.matmul_peak(dtype, target.platform)
        meter = throughput.Meter(self.config.batch, flops, peak, self.setup.target.local[0])
        meter.restart(batches.waited)
        return meter

    def _after_step(self, numbers: dict[str, Array], batches: data.Prefetch) -> None:
        """Count the step, then log, evaluate, sample and save if due, in this order."""
        self.step += 1
        self.meter.count()
        self.display.advance()
        self.in_flight.append(numbers)
        if len(self.in_flight) > IN_FLIGHT:
            self._collect()
        due = partial(_due, self.step, self.config.steps)
        if due(self.config.log.every):
            self._settle()
            self._log(batches)
        if self.held_out is not None and due(self.config.held_out.every):
            self._settle()
            with self._aside():
                self.rated = self.held_out(self.state)
            self._write(self.rated)
        if due(self.config.sample.every):
            with self._aside():
                self._draw()
        if due(self.config.checkpoint.every):
            self._settle()
            with self._aside():
                self._save()
        self.checkpointer.poll()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Exclude the time of the block from the training rate."""
        began = time.perf_counter()
        yield
        self.meter.pause(began)

    @contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        """Profile the steps that the config selects."""
        first, count = self.config.log.profile
        if count and step == first:
            jax.profiler.start_trace(str(self.folder / "profile"))
        yield
        if count and step == first + count - 1:
            self._settle()
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self.display.say(f"profiler trace of {count} steps in {self.folder / 'profile'}")

    def _collect(self) -> None:
        """Copy the oldest pending metrics to the host; this waits for their step."""
        numbers = self.in_flight.popleft()
        # This runs at every step and costs a tenth of `jax.device_get`.
        self.pending.append({name: float(np.asarray(value)) for name, value in numbers.items()})
        step = self.step - len(self.in_flight)
        if not self.pending[-1]["finite"] and self.config.nonfinite == "stop":
            self.checkpointer.wait()
            saved = steps_in(workdir.checkpoints(self.folder))
            newest = f"the newest checkpoint is step {saved[-1]}" if saved else "nothing is saved"
            raise FloatingPointError(
                f"loss, gradient or update is not finite at step {step}; {newest}; lower the learning "
                "rate, or set config.nonfinite=skip to leave such updates out"
            )

    def _settle(self) -> None:
        while self.in_flight:
            self._collect()

    def _write(self, record: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.write(self.step, record)

    def _log(self, batches: data.Prefetch) -> None:
        record = metrics.summarize(self.pending)
        self.pending.clear()
        self._write(record)
        clocks = self.meter.read(batches.waited)
        if self.clocks is not None:
            self.clocks.write(self.step, clocks)
            for sink in self.sinks[1:]:
                sink.write(self.step, clocks)
        self.display.record(self.step, {**record, **clocks})

    def _draw(self) -> None:
        """Write the images of the run: samples or a classifier's accuracy, and the loss curve."""
        key = jax.random.key(self.config.seed)
        images = self.sampler(self.state.ema, key) if self.sampler else None
        if not self.lead:
            return
        folder, options = self.folder / "samples", self.config.sample
        records = metrics.read(self.folder / "metrics.jsonl")
        if images is not None:
            folder.mkdir(exist_ok=True)
            title = f"step {self.step}, w = {options.scale:g}, Heun, {options.steps} steps"
            path = folder / f"{self.step:08d}.png"
            drawn = self.setup.dataset.images(np.asarray(images))
            grids.draw_grid(
                drawn,
                options.rows,
                title,
                path,
                columns=self.columns,
                column_title=grids.column_title(self.setup.parts.condition),
            )
        else:
            plots.draw_accuracies(records, self.folder / "accuracy.png")
        plots.draw_loss(records, self.folder / "loss.png")

    def _save(self) -> None:
        self.checkpointer.save(self.state, self.rated, list(self.pending))

    def _close(self) -> None:
        self.display.close()
        for sink in [*self.sinks, *([self.clocks] if self.clocks else [])]:
            sink.close()


def _due(step: int, last: int, every: int) -> bool:
    """Whether something with this period is due at a step; at the last step everything is due."""
    return bool(every) and (step % every == 0 or step == last)


def train(
    config: ConfigDict,
    folder: Path,
    *,
    resume: bool = False,
    start: Start | None = None,
    display: bool = True,
) -> Outcome:
    """Train the run of a config in a workdir.

    Args:
      resume: go on from the newest checkpoint; short for `start=Start(resume=True)`.
      start: how the run begins.
    Raises:
      ValueError: the config is invalid, or the workdir or its checkpoints do not match it.
      FloatingPointError: a loss was not finite.
      SaveError: a checkpoint could not be written.
    """
    start = start or Start(resume=resume)
    # First, so that what is no good leaves nothing behind.
    setup = build(settled_for(config, folder, start.resume))
    check_override(start.override, setup.identity)
    say = print if processes.is_lead() and display else (lambda line: None)
    warm = warm_parameters(setup, folder, start, say)
    with ExitStack() as stack:
        if processes.is_lead():
            stack.enter_context(workdir.locked(folder))
        run = Run(setup, folder, start, warm, display)
        if processes.is_lead():
            workdir.write_config(folder, configs.resolved(setup.config))
            workdir.write_examples(folder, setup.dataset)
        return run.fit()
