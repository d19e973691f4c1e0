"""`guidedflow bench`: sampler steps a second, guided and not, as a table, JSON and a picture."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp

from guidedflow import benchmark, benchmark_peers, benchmark_training
from guidedflow.files import replacing
from guidedflow.registry import choose

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> Parser:
    """Return the command's options."""
    options = Parser(
        prog="guidedflow bench",
        description="Time sampling without guidance and with it, each compiled apart and all taken "
        "in turn, against the peak of matrix products of the network's own shapes.",
        allow_abbrev=False,
    )
    options.add_argument("--preset", help="a network by name, as DiT-S/2; needs no data")
    options.add_argument("--config", help="or a config file, whose network and data set count")
    options.add_argument("--batch", type=int, default=8, help="images (default 8)")
    options.add_argument("--steps", type=int, default=50, help="solver steps (default 50)")
    options.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    options.add_argument("--solver", default="euler", help="euler, midpoint, heun or rk4")
    options.add_argument(
        "--modes",
        default=",".join(benchmark.MODES),
        help=f"ways of guiding, of {','.join(benchmark.MODES)} (default all)",
    )
    options.add_argument(
        "--dtype", help="float32 or bfloat16 (default: what the device is fast in)"
    )
    options.add_argument("--attention", default="auto", help="auto, xla, cudnn or cpu")
    options.add_argument(
        "--against",
        help="other programs on the same weights, of torch,torch-compile,diffusers; in a checkout "
        "with guidedflow[peers]",
    )
    options.add_argument("--training", action="store_true", help="time the training step too")
    options.add_argument("--accumulate", type=int, default=1, help="its micro-batches (default 1)")
    options.add_argument("--out", help="folder for bench.json and bench.png")
    return options


def network_of(options: argparse.Namespace) -> Any:
    """Return the network that the options name."""
    import jax

    from guidedflow import models

    if (options.preset is None) == (options.config is None):
        raise ValueError("bench needs --preset=NAME or --config=FILE, one of them")
    if options.dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    else:
        dtype = choose("dtype", options.dtype, DTYPES)
    fields = {"dtype": dtype, "attention": options.attention}
    if options.preset is not None:
        return models.create(options.preset, **fields)
    from guidedflow.training.build import build

    return build(config_in(Path(options.config))).network.clone(**fields)


def config_in(file: Path) -> Any:
    """Return what a config file's get_config() gives.

    Raises:
      ValueError: there is no such file, or it has no get_config.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"there is no config file {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} has no get_config()")
    return module.get_config()


def picture(figures: dict[str, Any], file: Path) -> None:
    """Draw steps a second of every mode, with the least and the greatest, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = figures["rows"]
    rates = [row["steps_per_second"] for row in rows]
    middle = [rate["median"] for rate in rates]
    error = [
        [rate["median"] - rate["min"] for rate in rates],
        [rate["max"] - rate["median"] for rate in rates],
    ]
    about = figures["workload"]
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.barh([row["mode"] for row in rows], middle, xerr=error, color="#4477aa", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("sampler steps per second (median, least and greatest)")
    axes.set_title(
        f"{about['parameters'] / 1e6:.1f} M parameters, batch {about['batch']}, {about['dtype']}, "
        f"{figures['machine']['processor']}",
        fontsize=9,
    )
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def write(figures: dict[str, Any], folder: Path) -> None:
    """Write bench.json and bench.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "bench.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    picture(figures, folder / "bench.png")


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
    work: benchmark.Workload, names: list[str], modes: list[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """Return other programs by name, each of them held to our output first."""
    if not names:
        return {}
    mode, known = against_mode(modes), benchmark_peers.load().PEERS
    peers = {}
    for name in names:
        peers[name] = choose("program", name, known)(work)
        far = benchmark_peers.distance(work, mode, peers[name], name)
        report(f"{name}: {far:.1e} from our guided velocity")
    return peers


def train(
    work: benchmark.Workload,
    names: list[str],
    options: argparse.Namespace,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and print the training step, beside the programs that have one."""
    known = benchmark_peers.load().TRAINING if names else {}
    rate = benchmark_training.LEARNING_RATE
    others = {name: known[name](work, rate) for name in names if name in known}
    figures = benchmark_training.bench_training(
        work, options.repeats, report, others, options.accumulate
    )
    print("\n" + benchmark_training.line(figures))
    figures["against"] = {
        name: benchmark_peers.ratios(figures["seconds"], "training", name) for name in others
    }
    if others:
        print("\n" + benchmark_peers.lines(figures["against"]))
    return figures


def main(arguments: list[str]) -> int:
    """Run the benchmark.

    Raises:
      ValueError: an option is unknown, not a number, or out of range.
    """
    options = parser().parse_args(arguments)
    for name in ("batch", "steps", "repeats", "accumulate"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    choose("solver", options.solver, benchmark.SOLVERS)
    modes = options.modes.split(",")
    for mode in modes:
        choose("mode", mode, benchmark.MODES)
    network = network_of(options)
    work = benchmark.make_workload(network, options.batch, options.steps, options.solver)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    names = options.against.split(",") if options.against else []
    peers = peers_of(work, names, modes, report)
    runs = {name: peer.run for name, peer in peers.items()}
    figures = benchmark.bench(work, modes, options.repeats, report, runs)
    print(benchmark.table(figures))
    if names:
        figures["against"] = {
            name: benchmark_peers.ratios(figures["seconds"], against_mode(modes), name)
            for name in names
        }
        print("\n" + benchmark_peers.lines(figures["against"]))
    if options.training:
        figures["training"] = train(work, names, options, report)
    if options.out:
        write(figures, Path(options.out))
        print(f"\nwritten: {options.out}/bench.json and {options.out}/bench.png")
    return 0
