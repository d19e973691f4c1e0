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
from pathlib import Path

import numpy as np

from guidedflow.bundle import Bundle
from guidedflow.commands import Parser
from guidedflow.commands.options import (
    Progress,
    helpers_of,
    integer,
    join_processes,
    method_of,
    method_options,
    number,
    words,
)
from guidedflow.files import check_writable, replacing
from guidedflow.pipelines import Method, sample
from guidedflow.training import load, processes
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
    options.add_argument("--labels", type=words, help="classes, as 0,1,2 or cat,dog (default: all)")
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
    bundle = load.load(given.workdir, ema=given.ema, say=say)
    chosen = bundle.condition.parse(given.labels or bundle.condition.every())
    helpers = helpers_of(given, bundle, say)
    labels = np.tile(chosen, given.each)
    begin = time.monotonic()
    with Progress(labels.size) as progress:
        drawn = sample(
            bundle,
            labels,
            method,
            seed=given.seed,
            batch=given.batch,
            progress=progress,
            **helpers,
        )
    if not np.all(np.isfinite(drawn)):
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(drawn).all(axis=(1, 2, 3)))} of {labels.size} images are not "
            f"finite at scale {given.scale:g}; take a smaller scale or more steps"
        )
    if processes.is_lead():
        write(given.out, bundle.images(drawn), labels, bundle, method, given.seed)
    processes.barrier("the images are written")
    say(f"{labels.size} images in {time.monotonic() - begin:.1f} s: {given.out}")
    return 0


def write(
    out: Path, images: np.ndarray, labels: np.ndarray, bundle: Bundle, method: Method, seed: int
) -> None:
    """Write a grid, one label a column, or an archive: whole or not at all."""
    if out.suffix == ".npz":
        pixels = images.shape[-1] in (1, 3)
        with replacing(out) as temporary:
            np.savez(temporary, arr_0=to_uint8(images) if pixels else images, labels=labels)
        return
    title = f"w = {method.scale:g}, {method.solver}, {method.steps} steps, seed {seed}"
    columns = list(dict.fromkeys(bundle.condition.say(labels)))
    draw_grid(images, len(labels) // len(columns), title, out, columns=columns)
