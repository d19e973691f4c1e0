"""Benchmark of sampling: every mode of guidance is compiled separately; all are timed in turn."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from guidedflow import samplers
from guidedflow.benchmark.counting import evaluations, matmul_peak, matmuls, network_flops
from guidedflow.benchmark.timing import machine, peak_memory, program_bytes, spread, timed
from guidedflow.benchmark.workload import MODES, Workload, model_of
from guidedflow.pipelines.methods import RUNGE_KUTTA


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled sampling job.

    Attributes:
      run: runs it and waits.
      compile_seconds: lowering and compiling.
      peak_bytes: peak memory according to XLA.
    """

    run: Callable[[], None]
    compile_seconds: float
    peak_bytes: int


def compile_mode(work: Workload, mode: str) -> Program:
    """Compile one mode of sampling for this workload."""
    solver, _ = RUNGE_KUTTA[work.solver]
    null = int(work.network.num_classes)

    def job(params: PyTree, noise: Array, labels: Array) -> Array:
        model = MODES[mode](model_of(work, params, labels, jnp.asarray(work.ts)), null)
        return samplers.sample_ode(model, noise, work.ts, labels, step=solver)

    began = time.perf_counter()
    compiled = jax.jit(job).lower(work.params, work.noise, work.labels).compile()
    seconds = time.perf_counter() - began

    def run() -> None:
        jax.block_until_ready(compiled(work.params, work.noise, work.labels))

    return Program(run, seconds, program_bytes(compiled))


def bench(
    work: Workload,
    modes: list[str],
    repeats: int = 5,
    report: Callable[[str], None] = lambda line: None,
    others: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """Measure every mode and the device's peak, and return the figures.

    Args:
      modes: names of MODES.
      repeats: timed rounds.
      report: told what is going on, and of each mode a first figure once it is compiled.
      others: other programs' runs by name, timed in the same rounds.

    Returns:
      `machine`, `workload`, `peak_flops` of one device (min, median, max), and a row a mode:
      compile_seconds, steps_per_second, images_per_second, evaluations_per_second, utilisation,
      memory, and `times_unguided`, seconds over those of mode "none" in the same round.  `seconds` has
      every round of every mode and other program.
    """
    programs, memory = {}, {}
    for mode in modes:
        report(f"compiling {mode}")
        program = programs[mode] = compile_mode(work, mode)
        began = time.perf_counter()
        memory[mode] = peak_memory(program.run, program.peak_bytes)
        rate = work.steps / (time.perf_counter() - began)
        report(f"{mode}: {rate:.3g} steps/s in its first run")
    dtype = getattr(work.network, "dtype", jnp.float32)
    products = matmuls(work.network, work.batch, dtype)
    runs = {mode: program.run for mode, program in programs.items()}
    runs |= {name: product.run for name, product in products.items()}
    seconds = timed({**runs, **(others or {})}, repeats, report)
    peak, peak_name = matmul_peak(products, seconds)
    flops, counts = network_flops(work)
    rows = []
    for mode, program in programs.items():
        taken = np.asarray(seconds[mode])
        count = evaluations(work, mode)
        row = {
            "mode": mode,
            "compile_seconds": program.compile_seconds,
            "steps_per_second": spread(work.steps / taken),
            "images_per_second": spread(work.batch / taken),
            "evaluations_per_second": spread(count * work.batch / taken),
            "utilisation": spread(count * flops / taken / (work.devices * peak)),
            "memory": memory[mode],
        }
        if "none" in seconds:
            row["times_unguided"] = spread(taken / np.asarray(seconds["none"]))
        rows.append(row)
    return {
        "machine": machine(),
        "workload": description(work) | {"flops_per_image": flops / work.batch} | counts,
        "peak_flops": spread(peak),
        "peak_from": peak_name,
        "rows": rows,
        "seconds": seconds,
    }


def description(work: Workload) -> dict[str, Any]:
    """Return what was measured: the network's size, the job's, and which attention ran."""
    dtype = getattr(work.network, "dtype", jnp.float32)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(work.params)),
        "batch": work.batch,
        "steps": work.steps,
        "solver": work.solver,
        "conditioning": work.conditioning,
        "dtype": jnp.dtype(dtype).name,
        "attention": work.network.operations.attention_name(dtype),
        "kernels": work.network.operations.name,
        "devices": work.devices,
    }


def heading(figures: Mapping[str, Any]) -> str:
    """Return what a table's figures must be read with, in two lines."""
    about, where = figures["workload"], figures["machine"]
    return (
        f"{where['processor']} ({where['platform']} x {about['devices']}), jax {where['jax']}, "
        f"{where['date']}\n"
        f"{about['parameters'] / 1e6:.1f} M parameters, batch {about['batch']}, "
        f"{about['steps']} {about['solver']} steps, {about['dtype']}, {about['attention']} attention, "
        f"kernels by {about['kernels']}, "
        f"{about['flops_per_image'] / 1e9:.3g} GFLOP an evaluation (from {about['flops_from']}), "
        f"matmul peak {figures['peak_flops']['median'] / 1e9:.4g} GFLOP/s ({figures['peak_from']})"
    )


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench` as text, medians with the least and the greatest behind."""
    lines = [
        heading(figures),
        "",
        f"{'mode':13} {'compile s':>9} {'steps/s':>24} {'images/s':>9} {'evaluations/s':>13} "
        f"{'utilisation':>11} {'memory MB':>9} {'x unguided':>10}",
    ]
    for row in figures["rows"]:
        steps = row["steps_per_second"]
        ratio = row.get("times_unguided", {}).get("median")
        lines.append(
            f"{row['mode']:13} {row['compile_seconds']:9.1f} "
            + f"{steps['median']:.3g} ({steps['min']:.3g} .. {steps['max']:.3g})".rjust(24)
            + f" {row['images_per_second']['median']:9.3g}"
            f" {row['evaluations_per_second']['median']:13.3g}"
            f" {row['utilisation']['median']:11.0%}"
            f" {row['memory']['bytes'] / 1e6:9.1f}" + (f" {ratio:10.2f}" if ratio else "")
        )
    sources = sorted({row["memory"]["from"] for row in figures["rows"]})
    lines.append(f"memory: peak on one device, by {'; '.join(sources)}")
    return "\n".join(lines)
