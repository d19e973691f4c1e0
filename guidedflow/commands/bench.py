"""`guidedflow bench`: sampler steps a second, guided and not, as a table, JSON and plots."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from guidedflow import benchmark
from guidedflow.benchmark import peers, training
from guidedflow.commands import Parser
from guidedflow.files import replacing
from guidedflow.pipelines.methods import RUNGE_KUTTA
from guidedflow.registry import choose

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Report = Callable[[str], None]


def parser() -> Parser:
    """Return the command's options."""
    options = Parser(
        prog="guidedflow bench",
        description="Time sampling without guidance and with it, each compiled apart and all taken "
        "in turn, against the peak of matrix products of the network's own shapes.",
        allow_abbrev=False,
    )
    options.add_argument("--preset", help="a network by name, as DiT-S/2; needs no data")
    options.add_argument(
        "--config", help="or a config by path or name, whose network and data set count"
    )
    options.add_argument("--batch", type=int, default=8, help="images (default 8)")
    options.add_argument("--batches", help="or several batches one after another, as 1,8,32")
    options.add_argument("--steps", type=int, default=10, help="solver steps (default 10)")
    options.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    options.add_argument("--solver", default="euler", help="euler, midpoint, heun or rk4")
    options.add_argument(
        "--modes",
        default="none,vmapped",
        help=f"ways of guiding, of {','.join(benchmark.MODES)} (default none,vmapped)",
    )
    options.add_argument(
        "--dtype", help="float32 or bfloat16 (default: what the device is fast in)"
    )
    options.add_argument(
        "--conditioning",
        default="each",
        help="a DiT's modulations computed at each step (default), or once for the whole grid",
    )
    options.add_argument("--attention", default="auto", help="auto, xla, cudnn or cpu")
    options.add_argument(
        "--kernels",
        default="xla",
        help="who computes a network in float32: xla (default); native, kernels compiled for this CPU; "
        "or one of these, amx, avx512, avx2",
    )
    options.add_argument(
        "--strategy",
        default="one",
        help=f"{', '.join(benchmark.STRATEGIES)}: one device (default), or training as in a config "
        "and sampling with its batch spread over all devices",
    )
    options.add_argument("--mesh", default="0x1", help="data x fsdp of --strategy=mesh, as 4x2")
    options.add_argument(
        "--against",
        help="other programs on the same weights, of torch,torch-compile,diffusers; in a checkout "
        "with guidedflow[peers]",
    )
    options.add_argument("--training", action="store_true", help="time the training step too")
    options.add_argument("--accumulate", type=int, default=1, help="its micro-batches (default 1)")
    options.add_argument(
        "--parts", action="store_true", help="time each part of the network too, compiled apart"
    )
    options.add_argument(
        "--grow",
        action="store_true",
        help="instead, seconds of the first of --modes over batch, tokens, depth and steps",
    )
    options.add_argument(
        "--out", help="folder for the figures as JSON and, with matplotlib, pictures"
    )
    return options


def network_of(options: argparse.Namespace) -> Any:
    """Return the network that the options name."""
    from guidedflow import models
    from guidedflow.models.kernels import operations_for
    from guidedflow.target import attached

    platform = attached().platform

    if (options.preset is None) == (options.config is None):
        raise ValueError("bench needs --preset=NAME or --config=FILE, one of them")
    if options.dtype is None:
        dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    else:
        dtype = choose("dtype", options.dtype, DTYPES)
    operations = operations_for(options.kernels, options.attention, platform)
    fields = {"dtype": dtype, "operations": operations}
    if options.preset is not None:
        return models.create(options.preset, **fields)
    from guidedflow import config_files
    from guidedflow.training.build import build

    return build(config_files.load(options.config)).network.clone(**fields)


def whole_numbers(option: str, text: str, between: str) -> list[int]:
    """Read whole numbers of at least 0 between separators.

    Raises:
      ValueError: something else.
    """
    parts = text.split(between)
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--{option} takes whole numbers with {between!r} between, got {text!r}")
    return [int(part) for part in parts]


def write(figures: Any, name: str, folder: Path, report: Report) -> None:
    """Write NAME.json, and where matplotlib is installed its images, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    report(f"written: {folder / name}.json")
    try:
        from guidedflow.benchmark import plots
    except ImportError:
        report("no pictures: matplotlib is not installed")
        return
    drawn: dict[str, tuple[Callable[[Any, Path], None], Any]]
    drawn = {f"{name}.png": (plots.growth if name == "growth" else plots.rates, figures)}
    if name == "batches":
        drawn = {"batches.png": (plots.batches, figures["sweep"])}
    elif "parts" in figures:
        drawn["parts.png"] = (plots.parts, figures["parts"])
    for file, (draw, what) in drawn.items():
        draw(what, folder / file)
        report(f"written: {folder / file}")


def against_mode(modes: list[str]) -> str:
    """Return the guided way that other programs are compared with: the first that guides always.

    Raises:
      ValueError: there is none.
    """
    for mode in modes:
        if mode in ("vmapped", "concatenated", "sequential"):
            return mode
    raise ValueError("--against needs vmapped, concatenated or sequential in --modes")


def peers_of(
    work: benchmark.Workload, names: list[str], modes: list[str], report: Report
) -> dict[str, Any]:
    """Return other programs by name, each of them held to our output first."""
    if not names:
        return {}
    mode, known = against_mode(modes), peers.load().PEERS
    found = {}
    for name in names:
        found[name] = choose("program", name, known)(work)
        far = peers.distance(work, mode, found[name], name)
        report(f"{name}: {far:.1e} from our guided velocity")
    return found


def train(
    work: benchmark.Workload, names: list[str], options: argparse.Namespace, report: Report
) -> dict[str, Any]:
    """Measure and print the training step, beside the programs that have one."""
    known = peers.load().TRAINING if names else {}
    rate = training.LEARNING_RATE
    others = {name: known[name](work, rate) for name in names if name in known}
    strategy = benchmark.strategy_of(options.strategy, mesh_of(options))
    figures = benchmark.bench_training(
        work, options.repeats, report, others, options.accumulate, strategy
    )
    print("\n" + training.line(figures))
    figures["against"] = {
        name: peers.ratios(figures["seconds"], "training", name) for name in others
    }
    if others:
        print("\n" + peers.lines(figures["against"]))
    return figures


def mesh_of(options: argparse.Namespace) -> tuple[int, int]:
    """Return the sizes of the mesh that the options give."""
    sizes = whole_numbers("mesh", options.mesh, "x")
    if len(sizes) != 2:
        raise ValueError(f"--mesh takes data x fsdp, as 4x2, got {options.mesh!r}")
    return sizes[0], sizes[1]


def measure(network: Any, batch: int, options: argparse.Namespace, report: Report) -> dict:
    """Measure one batch: sampling, other programs beside it, training, parts; print and return it."""
    modes = options.modes.split(",")
    plain = benchmark.make_workload(
        network, batch, options.steps, options.solver, conditioning=options.conditioning
    )
    work = plain if options.strategy == "one" else benchmark.over_devices(plain)
    names = options.against.split(",") if options.against else []
    found = peers_of(work, names, modes, report)
    runs = {name: peer.run for name, peer in found.items()}
    figures = benchmark.bench(work, modes, options.repeats, report, runs)
    print(benchmark.table(figures))
    if names:
        figures["against"] = {
            name: peers.ratios(figures["seconds"], against_mode(modes), name) for name in names
        }
        print("\n" + peers.lines(figures["against"]))
    if options.training:
        figures["training"] = train(plain, names, options, report)
    if options.parts:
        figures["parts"] = benchmark.bench_parts(plain, options.repeats, report)
        print("\n" + benchmark.parts_table(figures["parts"]))
    return figures


def check(options: argparse.Namespace) -> list[int]:
    """Return the batches to measure.

    Raises:
      ValueError: an option is unknown or out of range.
    """
    for name in ("batch", "steps", "repeats", "accumulate"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    choose("solver", options.solver, RUNGE_KUTTA)
    choose("conditioning", options.conditioning, {"each": None, "once": None})
    if options.conditioning == "once" and options.solver not in ("euler", "heun"):
        raise ValueError(f"--conditioning=once: {options.solver} leaves the grid's times")
    choose("strategy", options.strategy, dict.fromkeys(benchmark.STRATEGIES))
    mesh_of(options)
    for mode in options.modes.split(","):
        choose("mode", mode, benchmark.MODES)
    if options.batches is None:
        return [options.batch]
    sizes = whole_numbers("batches", options.batches, ",")
    if min(sizes) < 1:
        raise ValueError(f"--batches must be at least 1, got {options.batches}")
    return sizes


def main(arguments: list[str]) -> int:
    """Run the benchmark.

    Raises:
      ValueError: an option is unknown, not a number, or out of range.
    """
    options = parser().parse_args(arguments)
    sizes = check(options)
    network = network_of(options)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.grow:
        mode = options.modes.split(",")[0]
        grown = benchmark.bench_growth(
            network, options.batch, options.steps, options.solver, mode, options.repeats, report
        )
        print(benchmark.growth_table(grown))
        name, figures = "growth", grown
    else:
        sweep = [measure(network, size, options, report) for size in sizes]
        name, figures = ("batches", {"sweep": sweep}) if options.batches else ("bench", sweep[0])
    if options.out:
        write(figures, name, Path(options.out), report)
    return 0
