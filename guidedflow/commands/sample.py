"""guidedflow sample: draw images from a trained run.

  guidedflow sample --workdir=runs/digits --labels=0,1,2 --scale=2 --solver=heun --steps=32 \\
    --seed=0 --out=grid.png

A run that was told captions takes --prompt="red heart" or --prompts=FILE, one prompt a line, and
--negative="…", which takes the empty prompt's place. A name that ends in .png gets a grid, one label
or prompt a column; .npz gets `arr_0`, the images as uint8 NHWC (latents that no decoder was stored
with as float32), and `labels` or `prompts`. On several hosts: the same
command on each, with --distributed or the three flags of `guidedflow train`; process 0 writes the
file.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from guidedflow.bundle import Bundle
from guidedflow.commands import Parser
from guidedflow.commands.options import (
    Progress,
    asked_of,
    helpers_of,
    integer,
    join_processes,
    method_of,
    method_options,
    negative_of,
    number,
    told_options,
)
from guidedflow.conditions import Condition
from guidedflow.files import check_writable, replacing
from guidedflow.pipelines import Method, sample
from guidedflow.training import load, processes
from guidedflow.training.grids import column_title, draw_grid, to_uint8
from guidedflow.types import Cond


def parser() -> argparse.ArgumentParser:
    """Return the options of `guidedflow sample`."""
    options = Parser(
        "guidedflow sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--out", type=Path, required=True, help="grid.png or samples.npz")
    told_options(options)
    options.add_argument(
        "--each", type=integer(1), default=8, help="images a label or prompt (default 8)"
    )
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
    chosen = bundle.condition.parse(asked_of(given, bundle.condition))
    negative = negative_of(given, bundle.condition)
    helpers = helpers_of(given, bundle, say)
    cond = jax.tree.map(lambda leaf: np.concatenate([leaf] * given.each), chosen)
    count = len(jax.tree.leaves(cond)[0])
    begin = time.monotonic()
    with Progress(count) as progress:
        drawn = sample(
            bundle,
            cond,
            method,
            seed=given.seed,
            batch=given.batch,
            progress=progress,
            negative=negative,
            **helpers,
        )
    if not np.all(np.isfinite(drawn)):
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(drawn).all(axis=(1, 2, 3)))} of {count} images are not "
            f"finite at scale {given.scale:g}; take a smaller scale or more steps"
        )
    if processes.is_lead():
        write(given.out, bundle.images(drawn), cond, bundle, method, given.seed)
    processes.barrier("the images are written")
    say(f"{count} images in {time.monotonic() - begin:.1f} s: {given.out}")
    return 0


def write(
    out: Path, images: np.ndarray, cond: Cond, bundle: Bundle, method: Method, seed: int
) -> None:
    """Write a grid, one condition a column, or an archive: whole or not at all."""
    said = bundle.condition.say(cond)
    if out.suffix == ".npz":
        pixels = images.shape[-1] in (1, 3)
        with replacing(out) as temporary:
            arrays: dict[str, Any] = _told(bundle.condition, cond, said)
            np.savez(temporary, arr_0=to_uint8(images) if pixels else images, **arrays)
        return
    title = f"w = {method.scale:g}, {method.solver}, {method.steps} steps, seed {seed}"
    columns = list(dict.fromkeys(said))
    draw_grid(
        images,
        len(said) // len(columns),
        title,
        out,
        columns=columns,
        column_title=column_title(bundle.condition),
    )


def _told(condition: Condition, cond: Cond, said: list[str]) -> dict[str, np.ndarray]:
    """Return what an archive holds of the conditions: class numbers, or how they are said."""
    if condition.gives == {"label"}:
        return {"labels": np.asarray(cond)}
    return {"prompts" if "prompts" in condition.gives else "conditions": np.asarray(said)}
