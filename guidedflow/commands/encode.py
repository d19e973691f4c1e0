"""guidedflow encode: turn a data set into latents, on which a model is trained in place of pixels.

  guidedflow encode --dataset=digits --splits=train,test --encoder=pca --patch=2 --channels=3 \\
    --out=data/digits

Then --config.dataset.name=latents:data/digits trains on them, and `sample` and `evaluate` decode what
the model draws. A job that was cut short goes on where it stopped when it is started again. On several
hosts: the same command on each with --process_count=N --process_index=I, and a folder that all share.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from guidedflow import data
from guidedflow.commands import Parser
from guidedflow.commands.options import Progress, integer
from guidedflow.data.autoencoders import ENCODERS
from guidedflow.data.encoding import Job, encode
from guidedflow.data.latent_files import DTYPES
from guidedflow.registry import choose

# Number of images that are decoded again to measure the error.
_COMPARED = 256


def parser() -> argparse.ArgumentParser:
    """Return the options of `guidedflow encode`."""
    options = Parser(
        "guidedflow encode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument(
        "--dataset", required=True, help="as config.dataset.name: digits, cifar10, folder:PATH"
    )
    options.add_argument("--out", type=Path, required=True, help="folder to make")
    options.add_argument("--splits", default="train", help="as train,test (default train)")
    options.add_argument("--image_size", type=integer(1), help="side that pictures are brought to")
    options.add_argument("--data_dir", help="folder of prepared sets; the user's cache otherwise")
    options.add_argument("--encoder", default="pca", help=f"{', '.join(ENCODERS)} (default pca)")
    options.add_argument("--patch", type=integer(1), default=2, help="its side (default 2)")
    options.add_argument("--channels", type=integer(1), help="of the latents (default: all)")
    options.add_argument("--dtype", default="float16", help=f"{' or '.join(DTYPES)}")
    options.add_argument("--mirrored", action="store_true", help="add every picture mirrored")
    options.add_argument(
        "--records_per_shard", type=integer(1), default=8192, help="latents a file (default 8192)"
    )
    options.add_argument(
        "--batch", type=integer(1), default=256, help="pictures at a time (default 256)"
    )
    options.add_argument("--process_count", type=integer(1), default=1, help="processes in all")
    options.add_argument("--process_index", type=integer(0), default=0, help="this one, from 0")
    return options


def job_of(given: argparse.Namespace) -> Job:
    """Return the job that the options describe.

    Raises:
      ValueError: an unknown name, or a data set that is not there.
    """
    fit = choose("encoder", given.encoder, ENCODERS)
    splits: dict[str, data.Dataset] = {}
    for split in given.splits.split(","):
        # Each image is read once: keeping it would cost memory and save nothing.
        splits[split] = data.load(
            given.dataset,
            split=split,
            image_size=given.image_size,
            data_dir=given.data_dir,
            cache_bytes=0,
            # One class has one number in all splits.
            class_names=next(iter(splits.values())).class_names if splits else None,
        )
    if any(dataset.decoder for dataset in splits.values()):
        raise ValueError(f"{given.dataset} holds latents already")
    return Job(
        out=given.out.expanduser(),
        splits=splits,
        fit=partial(fit, patch=given.patch, channels=given.channels),
        recipe={"encoder": given.encoder, "patch": given.patch, "channels": given.channels},
        dtype=given.dtype,
        records_per_shard=given.records_per_shard,
        mirrored=given.mirrored,
    )


def main(arguments: list[str]) -> int:
    """Encode, and print a summary."""
    given = parser().parse_args(arguments)
    job = job_of(given)
    mine = list(job.shards())[given.process_index :: given.process_count]
    total = sum(
        min(job.records_per_shard, job.length(split) - number * job.records_per_shard)
        for split, number in mine
    )
    with Progress(total) as progress:
        complete = encode(
            job,
            process_index=given.process_index,
            process_count=given.process_count,
            batch=given.batch,
            progress=progress,
        )
    if not complete:
        print(f"{total:,} latents written; the process that ends last makes {given.out}")
        return 0
    print(f"{given.out}: {describe(job)}")
    print(f"train on them with --config.dataset.name=latents:{given.out}")
    return 0


def describe(job: Job) -> str:
    """Return a line with the number and shape of the latents, and the error of decoded images."""
    split, dataset = next(iter(job.splits.items()))
    stored = data.load(f"latents:{job.out}", split=split, cache_bytes=0)
    count = min(_COMPARED, dataset.length)
    decoded = stored.images(stored.take(count)["image"])
    error = np.sqrt(np.mean(np.square(decoded - dataset.take(count)["image"]))) * 127.5
    shapes = ["×".join(map(str, shape)) for shape in (stored.image_shape, dataset.image_shape)]
    return (
        f"{sum(map(job.length, job.splits)):,} latents of {shapes[0]} for pictures of {shapes[1]}; "
        f"decoded again a pixel is off by {error:.2f} of 255 levels (root mean square)"
    )
