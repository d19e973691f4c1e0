"""How many guided sampler steps a second a device gives, and at what fraction of its peak.

Every way of sampling is compiled ahead of time, and then all of them, and the matrix product that
stands for the device's peak, are timed in turn, A B C A B C: what disturbs the machine disturbs them
alike, and ratios are taken round by round. Needs the core and Flax, no data and no config library.
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

import guidedflow
from guidedflow import guidance, samplers, times
from guidedflow.models.dit import DiT
from guidedflow.models.grouping import CPU_ROWS, for_device
from guidedflow.types import ModelFn

SCALE = 1.5
# Solver to its evaluations a step.
SOLVERS: Mapping[str, tuple[samplers.scan.Solver, int]] = {
    "euler": (samplers.euler, 1),
    "midpoint": (samplers.midpoint, 2),
    "heun": (samplers.heun, 2),
    "rk4": (samplers.rk4, 4),
}
# The middle half of the grid guided, and none of it: no time of a grid lies in (1e-6, 2e-6).
MODES: Mapping[str, Callable[[ModelFn, int], ModelFn]] = {
    "none": lambda model, null: model,
    "vmapped": lambda model, null: guidance.classifier_free(model, null, SCALE),
    "concatenated": lambda model, null: guidance.classifier_free(
        model, null, SCALE, branches=guidance.concatenated
    ),
    "sequential": lambda model, null: guidance.classifier_free(
        model, null, SCALE, branches=guidance.sequential
    ),
    "interval": lambda model, null: guidance.classifier_free(
        model, null, guidance.interval(SCALE, 0.25, 0.75)
    ),
    "outside": lambda model, null: guidance.classifier_free(
        model, null, guidance.interval(SCALE, 1e-6, 2e-6)
    ),
}


@dataclasses.dataclass(frozen=True)
class Apply:
    """The network's image channels alone, as a function of parameters; equal for equal networks."""

    network: nn.Module

    def __call__(self, params: PyTree, x: Array, t: Array, cond: Array) -> Array:
        output: Any = self.network.apply({"params": params}, x, t, cond)
        return output[..., : x.shape[-1]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and the arrays of one sampling job.

    Attributes:
      network: class-conditional, called as (x, t, labels).
      params: its parameters.
      noise: b h w c.
      labels: b.
      ts: the grid.
      solver: a name of SOLVERS.
    """

    network: nn.Module
    params: PyTree
    noise: Array
    labels: Array
    ts: times.Grid
    solver: str

    @property
    def batch(self) -> int:
        return self.noise.shape[0]

    @property
    def steps(self) -> int:
        return len(self.ts) - 1


def random_params(network: nn.Module, shape: tuple[int, ...], seed: int = 0) -> PyTree:
    """Return parameters without the zeros of a new network, whose products could be skipped."""
    x, t, labels = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)

    def make(key: Array) -> PyTree:
        params = network.init(key, x, t, labels)["params"]
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        noisy = [
            leaf + 0.02 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy)

    return jax.jit(make)(jax.random.key(seed))


def make_workload(
    network: nn.Module, batch: int, steps: int, solver: str = "euler", seed: int = 0
) -> Workload:
    """Return a sampling job of `batch` images over `steps` steps with random parameters."""
    shape = (*network.size, network.channels)
    noise = samplers.draw_noise(jax.random.key(seed), (batch, *shape))
    labels = jnp.arange(batch, dtype=jnp.int32) % network.num_classes
    params = random_params(network, shape, seed)
    return Workload(network, params, noise, labels, times.uniform_grid(steps), solver)


def dit_flops(network: DiT) -> float:
    """Return the floating-point operations of one DiT evaluation of one image, 2 a multiply-add.

    Each block: 2 n d (3 d + d + 2 m d) for the products of n tokens of width d, 4 n^2 d for
    attention, 12 d^2 for the modulation; the embedders and the final layer around them. Softmax,
    normalisation and activations are left out, as is usual.
    """
    n, d = network.grid[0] * network.grid[1], network.width
    hidden = round(network.mlp_ratio * d)
    values = network.patch**2 * network.channels
    block = 2 * n * d * (4 * d + 2 * hidden) + 4 * n * n * d + 12 * d * d
    ends = 2 * n * values * d * (3 if network.double_channels else 2) + 4 * d * d
    return float(network.depth * block + ends + 2 * (256 * d + d * d))


def counted_flops(work: Workload) -> float:
    """Return XLA's count of the operations of one unguided evaluation of the whole batch."""
    t = jnp.full((work.batch,), 0.5)
    lowered = jax.jit(Apply(work.network)).lower(work.params, work.noise, t, work.labels)
    cost = lowered.cost_analysis() or {}
    return float(cost.get("flops", 0.0))


def evaluations(work: Workload, mode: str) -> float:
    """Return the evaluations of the whole batch that one run of this mode takes."""
    _, each = SOLVERS[work.solver]
    starts = work.ts[:-1]
    guided = {
        "none": np.zeros_like(starts, bool),
        "interval": (starts >= 0.25) & (starts <= 0.75),
        "outside": np.zeros_like(starts, bool),
    }.get(mode, np.ones_like(starts, bool))
    return float(each * (len(starts) + guided.sum()))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled sampling job.

    Attributes:
      run: runs it and waits.
      compile_seconds: lowering and compiling.
      peak_bytes: of temporaries, arguments and outputs, by XLA's account; 0 where it keeps none.
    """

    run: Callable[[], None]
    compile_seconds: float
    peak_bytes: int


def compile_mode(work: Workload, mode: str) -> Program:
    """Compile one way of sampling this workload."""
    solver, _ = SOLVERS[work.solver]
    apply = Apply(work.network)
    null = int(work.network.num_classes)

    def job(params: PyTree, noise: Array, labels: Array) -> Array:
        model = MODES[mode](for_device(Partial(apply, params), work.network), null)
        return samplers.sample_ode(model, noise, work.ts, labels, step=solver)

    began = time.perf_counter()
    compiled = jax.jit(job).lower(work.params, work.noise, work.labels).compile()
    seconds = time.perf_counter() - began
    account = compiled.memory_analysis()
    fields = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    peak = sum(int(getattr(account, field, 0)) for field in fields)

    def run() -> None:
        jax.block_until_ready(compiled(work.params, work.noise, work.labels))

    return Program(run, seconds, peak)


def product_of(network: nn.Module, batch: int, dtype: Any) -> tuple[Callable[[], None], float]:
    """Return a run of matrix products of the network's own MLP shape, and its operations.

    The shape is that of both branches' tokens times the widest kernel: the products that most of the
    network's time goes to, with nothing around them.
    """
    rows = 2 * batch * network.grid[0] * network.grid[1]
    if jax.default_backend() == "cpu":
        # Sampling takes a batch in turns of this many rows, whose product is faster than a large
        # one's: against the large one utilisation came out above 1.
        rows = min(rows, CPU_ROWS)
    width = network.width
    hidden = round(network.mlp_ratio * width)
    # A product that the call itself outlasts would measure the call.
    rows *= max(1, round(1e8 / (2.0 * rows * width * hidden)))
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (rows, width), dtype)
    b = jax.random.normal(keys[1], (width, hidden), dtype)
    product = jax.jit(jnp.matmul)
    one = 2.0 * rows * width * hidden
    # Long enough for the clock: about what a twentieth of a second of 200 GFLOP/s holds on a CPU.
    target = 1e10 if jax.default_backend() == "cpu" else 2e13
    count = max(1, round(target / one))

    def run() -> None:
        for _ in range(count):
            result = product(a, b)
        result.block_until_ready()

    return run, one * count


def timed(
    runs: Mapping[str, Callable[[], None]], repeats: int, report: Callable[[str], None]
) -> dict:
    """Return seconds of each run, `repeats` of them, taken in turn after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if index:
                seconds[name].append(time.perf_counter() - began)
        report(f"round {index} of {repeats}" if index else "warm")
    return seconds


def spread(values: list[float] | np.ndarray) -> dict[str, float]:
    """Return the least, the median and the greatest."""
    return {
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }


def machine() -> dict[str, Any]:
    """Return what a figure must be read with: device, versions, date."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "guidedflow": guidedflow.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Return the processor's name where the system tells, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
      report: told what is going on.
      others: other programs' runs by name, timed in the same rounds.

    Returns:
      `machine`, `workload`, `peak_flops` (min, median, max), and a row a mode: compile_seconds,
      steps_per_second, images_per_second, evaluations_per_second, utilisation, peak_bytes, and
      `times_unguided`, seconds over those of mode "none" in the same round.  `seconds` has every
      round of every mode and other program.
    """
    programs = {}
    for mode in modes:
        report(f"compiling {mode}")
        programs[mode] = compile_mode(work, mode)
    dtype = getattr(work.network, "dtype", jnp.float32)
    product, product_flops = product_of(work.network, work.batch, dtype)
    runs = {mode: program.run for mode, program in programs.items()}
    seconds = timed({**runs, **(others or {}), "product": product}, repeats, report)
    peak = product_flops / np.asarray(seconds.pop("product"))
    flops = counted_flops(work)
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
            "utilisation": spread(count * flops / taken / peak),
            "peak_bytes": program.peak_bytes,
        }
        if "none" in seconds:
            row["times_unguided"] = spread(taken / np.asarray(seconds["none"]))
        rows.append(row)
    about = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(work.params)),
        "batch": work.batch,
        "steps": work.steps,
        "solver": work.solver,
        "dtype": jnp.dtype(dtype).name,
        "flops_per_image": flops / work.batch,
    }
    if isinstance(work.network, DiT):
        about["flops_per_image_by_formula"] = dit_flops(work.network)
    return {
        "machine": machine(),
        "workload": about,
        "peak_flops": spread(peak),
        "rows": rows,
        "seconds": seconds,
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench` as text, medians with the least and the greatest behind."""
    about, where = figures["workload"], figures["machine"]
    lines = [
        f"{where['processor']} ({where['platform']} x {where['devices']}), jax {where['jax']}, "
        f"{where['date']}",
        f"{about['parameters'] / 1e6:.1f} M parameters, batch {about['batch']}, "
        f"{about['steps']} {about['solver']} steps, {about['dtype']}, "
        f"{about['flops_per_image'] / 1e9:.3g} GFLOP an evaluation, "
        f"matmul peak {figures['peak_flops']['median'] / 1e9:.4g} GFLOP/s",
        "",
        f"{'mode':13} {'compile s':>9} {'steps/s':>24} {'images/s':>9} {'evaluations/s':>13} "
        f"{'utilisation':>11} {'x unguided':>10}",
    ]
    for row in figures["rows"]:
        steps = row["steps_per_second"]
        ratio = row.get("times_unguided", {}).get("median")
        lines.append(
            f"{row['mode']:13} {row['compile_seconds']:9.1f} "
            + f"{steps['median']:.3g} ({steps['min']:.3g} .. {steps['max']:.3g})".rjust(25)
            + f" {row['images_per_second']['median']:9.3g}"
            f" {row['evaluations_per_second']['median']:13.3g}"
            f" {row['utilisation']['median']:10.0%}"
            + (f" {ratio:10.2f}" if ratio is not None else "")
        )
    return "\n".join(lines)
