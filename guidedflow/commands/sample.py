"""guidedflow sample: draw images from a trained run.

  guidedflow sample --workdir=runs/digits --labels=0,1,2 --scale=2 --solver=heun --steps=32 \\
    --seed=0 --out=grid.png

A name that ends in .png gets a grid, one label a column; .npz gets `arr_0`, the images as uint8
NHWC (latents that no decoder was stored with as float32), and `labels`. On several hosts: the same
command on each, with --distributed or the three flags of `guidedflow train`; process 0 writes the
file.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guidedflow import sampling
from guidedflow.commands import Parser
from guidedflow.commands.options import (
    Progress,
    helpers_of,
    integer,
    integers,
    join_processes,
    method_of,
    method_options,
    number,
)
from guidedflow.files import check_writable, replacing
from guidedflow.pipelines.methods import Method
from guidedflow.training import processes
from guidedflow.training.grids import draw_grid, to_uint8


def parser() -> argparse.ArgumentParser:
    """Return the options of `guidedflow sample`."""
    options = Parser(
        "guidedflow sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--out", type=Path, required=True, help="grid.png or samples.npz")
    options.add_argument("--labels", type=integers, help="classes, as 0,1,2 (default: all)")
    options.add_argument("--each", type=integer(1), default=8, help="images a label (default 8)")
    options.add_argument("--scale", type=number, default=1.0, help="guidance scale w; 1: none")
    method_options(options, steps=32)
    return options


def main(arguments: list[str]) -> int:
    """Sample, write one file, and say where it is."""
    given = parser().parse_args(arguments)
    if given.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {given.out}")
    say = join_processes(given)
    method = method_of(given, given.scale)
    if processes.is_lead():
        check_writable(given.out)
    trained = sampling.load(given.workdir, ema=given.ema, say=say)
    chosen = given.labels or list(range(trained.task.dataset.num_classes))
    trained.check_labels(chosen)
    helpers = helpers_of(given, trained, say)
    labels = np.tile(np.asarray(chosen, np.int32), given.each)
    begin = time.monotonic()
    with Progress(labels.size) as progress:
        images = sampling.sample(
            trained,
            labels,
            method,
            seed=given.seed,
            batch=given.batch,
            progress=progress,
            **helpers,
        )
    if not np.all(np.isfinite(images)):
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(images).all(axis=(1, 2, 3)))} of {labels.size} images are not "
            f"finite at scale {given.scale:g}; take a smaller scale or more steps"
        )
    images = trained.task.dataset.pictures(images)
    if processes.is_lead():
        write(given.out, images, labels, chosen, trained, method, given.seed)
    processes.barrier("the images are written")
    say(f"{labels.size} images in {time.monotonic() - begin:.1f} s: {given.out}")
    return 0


def write(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    chosen: Sequence[int],
    trained: sampling.Trained,
    method: Method,
    seed: int,
) -> None:
    """Write a grid or an archive, whole or not at all."""
    if out.suffix == ".npz":
        pixels = images.shape[-1] in (1, 3)
        with replacing(out) as temporary:
            np.savez(temporary, arr_0=to_uint8(images) if pixels else images, labels=labels)
        return
    names = trained.task.dataset.class_names
    title = f"w = {method.scale:g}, {method.solver}, {method.steps} steps, seed {seed}"
    columns = [names[label] if names else str(label) for label in chosen]
    draw_grid(images, len(labels) // len(chosen), title, out, columns=columns)
