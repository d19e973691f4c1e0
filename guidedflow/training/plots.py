"""The images that a run writes while it trains: grids of samples at a fixed seed, and the loss curve."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, PyTree
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from guidedflow.bundle import encoded
from guidedflow.conditions import entries
from guidedflow.files import replacing
from guidedflow.samplers import draw_noise, sample_ode, start
from guidedflow.times import uniform_grid
from guidedflow.training.build import Setup
from guidedflow.training.tasks.classifier import ACCURACY
from guidedflow.types import Cond

Sampler = Callable[[PyTree, Key[Array, ""]], Array]

MOST_CLASSES = 16
"""Columns of a grid where the config does not say how many."""


def shown(setup: Setup) -> Cond:
    """Return the conditions that grids show all through training, one a column.

    The config's prompts, everything that can be asked for up to a number, or what the first examples
    are told.
    """
    options, condition = setup.config.sample, setup.parts.condition
    if options.prompts:
        return condition.parse(entries(condition, "prompts", options.prompts))
    most = options.classes or MOST_CLASSES
    if condition.every():
        return condition.parse(condition.every()[:most])
    return condition.from_batch(setup.dataset.take(min(most, len(setup.dataset))))


def make_sampler(setup: Setup, cond: Cond | None = None) -> Sampler:
    """Return (params, key) -> images of fixed conditions, row after row, compiled over all devices.

    Example i draws from fold_in(key, i), so all grids of a run start from the same noise.
    All processes call it at the same steps.

    Args:
      cond: one per column; by default what `shown` gives.
    """
    options, mesh = setup.config.sample, setup.strategy.mesh
    cond = shown(setup) if cond is None else cond
    columns = len(jax.tree.leaves(cond)[0])
    asked = columns * options.rows
    # Padded to a multiple of the devices, so that each of them takes its share.
    count = -(-asked // mesh.size) * mesh.size
    ts = jnp.asarray(uniform_grid(options.steps))
    shared = NamedSharding(mesh, P(mesh.axis_names))

    def sample(params: PyTree, key: Array) -> Array:
        each, null = encoded(setup.network, params, cond, setup.parts.condition.null())
        every = jax.tree.map(lambda leaf: leaf[np.arange(count) % columns], each)
        guided = setup.guided(params, options.scale, null)
        noise = draw_noise(key, (count, *setup.dataset.image_shape))
        noise = jax.lax.with_sharding_constraint(noise, shared)
        noise = start(setup.path, noise, ts)
        return sample_ode(guided, noise, ts, every)[:asked]

    return jax.jit(sample, out_shardings=NamedSharding(mesh, P()))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name and rename it into place."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Write the training and held-out loss over the steps as PNG."""
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (
        ("loss", "training", "-"),
        ("held_out_loss", "held out, averaged parameters", "o-"),
    ):
        points = [(r["step"], r[name]) for r in records if name in r and np.isfinite(r[name])]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1.2, label=label)
    axes.set_title("Loss")
    axes.set_xlabel("step")
    axes.set_ylabel("mean loss of an example")
    axes.set_yscale("log")
    # A loss spans less than two decades; labels only at powers of ten would give one tick or none.
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6)))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend(frameon=False)
    save_figure(figure, path)


def draw_accuracies(records: list[dict[str, Any]], path: Path) -> None:
    """Write a classifier's held-out accuracy over t as PNG; earlier steps are paler.

    If no record has an accuracy, nothing is written.
    """
    measured = [record for record in records if any(name.startswith(ACCURACY) for name in record)]
    if not measured:
        return
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for index, record in enumerate(measured):
        points = [
            (float(name.removeprefix(ACCURACY)), value)
            for name, value in record.items()
            if name.startswith(ACCURACY)
        ]
        newest = index == len(measured) - 1
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            color="#4477aa",
            alpha=1 if newest else 0.1 + 0.4 * index / len(measured),
            linewidth=1.2,
            markersize=3,
            label=f"step {record['step']}" if newest else None,
        )
    axes.set_title("Accuracy on held-out images, averaged parameters")
    axes.set_xlabel("t (0 noise, 1 data)")
    axes.set_ylabel("share of classes told rightly")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)
