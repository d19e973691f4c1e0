"""What a run shows while it trains: grids of samples at a fixed seed, and the loss curve."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key, PyTree, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from guidedflow.files import replacing
from guidedflow.samplers import draw_noise, sample_ode
from guidedflow.times import uniform_grid
from guidedflow.training.build import Task
from guidedflow.training.classifying import ACCURACY

Sampler = Callable[[PyTree, Key[Array, ""]], Array]


def make_sampler(task: Task) -> Sampler:
    """Return (params, key) -> images of the fixed labels, compiled over all devices.

    Example i draws from fold_in(key, i), so a grid shows the same noise all through training.
    Every process calls it at the same steps.
    """
    options, mesh = task.config.sample, task.strategy.mesh
    classes = min(options.classes, task.dataset.num_classes)
    labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), options.rows)
    # Padded to a multiple of the devices, so that each of them takes its share.
    count = -(-labels.size // mesh.size) * mesh.size
    padded = jnp.resize(labels, (count,))
    shared = NamedSharding(mesh, P(("data", "fsdp")))

    def sample(params: PyTree, key: Array) -> Array:
        guided = task.guided(params, options.scale)
        noise = draw_noise(key, (count, *task.dataset.image_shape))
        noise = jax.lax.with_sharding_constraint(noise, shared)
        noise *= task.path.sigma(jnp.float32(0))  # its size where a path starts from more than 1
        images = sample_ode(guided, noise, jnp.asarray(uniform_grid(options.steps)), padded)
        return images[: labels.size]

    return jax.jit(sample, out_shardings=NamedSharding(mesh, P()))


def to_uint8(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Round images in [-1, 1] to bytes; what lies outside is cut."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name and rename it into place."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_grid(
    images: np.ndarray,
    rows: int,
    title: str,
    path: Path,
    *,
    columns: Sequence[str] = (),
    row_names: Sequence[str] = (),
    row_title: str = "draw",
) -> None:
    """Write a grid of images, one class a column, as PNG.

    Args:
      images: n h w c in [-1, 1], row after row; of latents the first channel is shown.
      columns, row_names: what stands at the axes; numbers from 0 where empty.
      row_title: what the rows are.
    """
    across = len(images) // rows
    pixels = to_uint8(images if images.shape[-1] in (1, 3) else images[..., :1])
    gap = max(1, pixels.shape[1] // 16)
    pixels = np.pad(pixels, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    height, width = pixels.shape[1:3]
    grid = pixels.reshape(rows, across, height, width, -1).transpose(0, 2, 1, 3, 4)
    sheet = grid.reshape(rows * height, across * width, -1)[gap:, gap:]
    size = (1.2 + 0.55 * across, 1.2 + 0.55 * rows * height / width)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    flat = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet
    axes.imshow(flat, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("class")
    axes.set_ylabel(row_title)
    for side, pitch, count, names in (
        ("x", width, across, columns),
        ("y", height, rows, row_names),
    ):
        middles = pitch * (np.arange(count) + 0.5) - 0.5 - gap / 2
        axes.set(**{f"{side}ticks": middles})
        axes.set(**{f"{side}ticklabels": names or [str(i) for i in range(count)]})
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    save_figure(figure, path)


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
    # A loss spans less than two decades, where powers of ten alone would label one tick or none.
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6)))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend(frameon=False)
    save_figure(figure, path)


def draw_accuracies(records: list[dict[str, Any]], path: Path) -> None:
    """Write a classifier's held-out accuracy over the time, earlier steps paler, as PNG.

    Nothing where no record holds one.
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
