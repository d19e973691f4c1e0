"""Plots of the benchmark's figures; only this module of the benchmark needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guidedflow.files import replacing

BLUE, GREY = "#4477aa", "#777777"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#555555")
UNITS = {"batch": "images", "tokens": "tokens an image", "depth": "blocks", "steps": "solver steps"}


def save(figure: Figure, file: Path) -> None:
    """Write a plot under a temporary name and rename it."""
    FigureCanvasAgg(figure)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def about(figures: Mapping[str, Any], *, batch: bool = True) -> str:
    """Return one line with the workload and the machine."""
    work, where = figures["workload"], figures["machine"]
    size = f"batch {work['batch']}, " if batch else ""
    return (
        f"{work['parameters'] / 1e6:.1f} M parameters, {size}{work['dtype']}, {where['processor']}, "
        f"{where['date']}"
    )


def error_bars(spreads: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Return the medians, and the distances of the minima and maxima from them."""
    middle = [one["median"] for one in spreads]
    below = [one["median"] - one["min"] for one in spreads]
    return middle, [below, [one["max"] - one["median"] for one in spreads]]


def rates(figures: Mapping[str, Any], file: Path) -> None:
    """Plot the steps per second of every mode."""
    rows = figures["rows"]
    middle, error = error_bars([row["steps_per_second"] for row in rows])
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([row["mode"] for row in rows], middle, xerr=error, color=BLUE, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("sampler steps per second (median, least and greatest)")
    axes.set_ylabel("way of guiding")
    axes.set_title(about(figures), fontsize=9)
    save(figure, file)


def batches(sweep: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot images per second and seconds per job over the batch, one curve per mode."""
    sizes = [figures["workload"]["batch"] for figures in sweep]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = sweep[0]["workload"]["steps"]
    for index, row in enumerate(sweep[0]["rows"]):
        colour = COLOURS[index % len(COLOURS)]
        rows = [figures["rows"][index] for figures in sweep]
        middle, error = error_bars([one["images_per_second"] for one in rows])
        left.errorbar(sizes, middle, error, marker="o", capsize=3, color=colour, label=row["mode"])
        seconds = [
            {k: b / one["images_per_second"][other] for k, other in _INVERSE.items()}
            for b, one in zip(sizes, rows, strict=True)
        ]
        middle, error = error_bars(seconds)
        right.errorbar(sizes, middle, error, marker="o", capsize=3, color=colour, label=row["mode"])
    left.set(ylabel=f"images per second at {steps} steps", title="Throughput")
    right.set(ylabel=f"seconds from noise to images, {steps} steps", title="Latency")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("batch (images)")
        axes.grid(alpha=0.3, which="both")
    left.legend(fontsize=8, frameon=False)
    figure.suptitle(about(sweep[0], batch=False), fontsize=9)
    save(figure, file)


# The slowest rate is the longest time.
_INVERSE = {"min": "max", "median": "median", "max": "min"}


def parts(figures: Mapping[str, Any], file: Path) -> None:
    """Plot the milliseconds of every part of the network and of the whole."""
    names = [*figures["milliseconds"], "whole network"]
    middle, error = error_bars([*figures["milliseconds"].values(), figures["whole"]])
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = [BLUE] * (len(names) - 1) + [GREY]
    bars = axes.barh(names, middle, xerr=error, color=colours, capsize=3)
    axes.bar_label(bars, [f"{value / middle[-1]:.0%}" for value in middle], padding=8, fontsize=8)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one evaluation of the batch (median, least and greatest)")
    axes.set_ylabel("part, all blocks together")
    axes.set_title(f"Each part compiled apart\n{about(figures)}", fontsize=9)
    save(figure, file)


def growth(figures: Mapping[str, Any], file: Path) -> None:
    """Plot seconds over each quantity with the fit and the limit from the matmul peak."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (quantity, one) in zip(
        figure.subplots(2, 2).ravel(), figures["growth"].items(), strict=True
    ):
        curve(axes, quantity, one)
    work = figures["workload"]
    figure.suptitle(
        f"Seconds of a job, {figures['mode']} guidance, {work['solver']}; elsewhere batch "
        f"{work['batch']}, {work['steps']} steps\n{about(figures)}, matmul peak "
        f"{figures['peak_flops']['median'] / 1e9:.0f} GFLOP/s",
        fontsize=9,
    )
    save(figure, file)


def curve(axes: Axes, quantity: str, one: Mapping[str, Any]) -> None:
    """Draw one quantity."""
    values = one["values"]
    middle, error = error_bars(one["seconds"])
    along = np.linspace(0, values[-1], 100)
    coefficients = one["fit"]["coefficients"]
    kind = "parabola" if len(coefficients) == 3 else "line"
    axes.plot(
        along,
        np.polyval(coefficients, along),
        color=BLUE,
        linewidth=1,
        label=f"fitted {kind}, R² {one['fit']['r_squared']:.3f}",
    )
    axes.errorbar(
        values, middle, error, fmt="o", color=BLUE, capsize=3, label="median, least and greatest"
    )
    axes.plot(
        values, one["limit"], "--", color="#cc3311", label="limit: its operations at the peak"
    )
    axes.set(
        xlabel=f"{quantity} ({UNITS[quantity]})", ylabel="seconds", title=quantity.capitalize()
    )
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
