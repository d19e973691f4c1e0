"""Encoding whole data sets to latents: by any number of processes, each its files, and again after a
kill.

The latents grow in a hidden folder beside the one that is asked for, `.NAME-encoding`: the recipe,
the code, and for each split its files, each with a line that says that it is whole.  Whoever writes
the last of them adds the indices and renames the folder, so that what bears its name is complete.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guidedflow.data.autoencoders import Code, load_code
from guidedflow.data.captions import OF_LATENTS, write_captions
from guidedflow.data.dataset import Dataset
from guidedflow.data.latent_files import (
    DECODER,
    INDEX,
    ShardWriter,
    Written,
    check_options,
    checked,
    index_of,
    shard_name,
)

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Job:
    """What is to be encoded, and to where.

    Attributes:
      out: the folder to make: out/split for every split.
      splits: data sets, all encoded by one code, which is fitted to the first.
      fit: data set -> code.
      recipe: what `fit` was made of, in JSON values; a job goes on only where it is the same.
      dtype: how numbers are stored: "float16" or "float32".
      records_per_shard: examples in a file.
      mirrored: add every picture mirrored left to right, after all of them.
    """

    out: Path
    splits: Mapping[str, Dataset]
    fit: Callable[[Dataset], Code]
    recipe: Mapping[str, Any]
    dtype: str = "float16"
    records_per_shard: int = 8192
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("expected at least one split")
        for split, dataset in self.splits.items():
            if split != Path(split).name:
                raise ValueError(f"a split becomes a folder, which cannot be named {split!r}")
            if not dataset.length:
                raise ValueError(f"split {split!r} has no examples")
            check_options(
                dataset.num_classes,
                1.0,
                0.0,
                dataset.class_names,
                self.dtype,
                self.records_per_shard,
            )

    @property
    def working(self) -> Path:
        """Where the latents grow."""
        return self.out.with_name(f".{self.out.name}-encoding")

    def length(self, split: str) -> int:
        """Return how many latents a split will have."""
        return self.splits[split].length * (2 if self.mirrored else 1)

    def whole_recipe(self) -> dict[str, Any]:
        """Return everything that the latents depend on, in JSON values."""
        sets = {split: dict(dataset.identity) for split, dataset in self.splits.items()}
        options = {
            "dtype": self.dtype,
            "records_per_shard": self.records_per_shard,
            "mirrored": self.mirrored,
        }
        return json.loads(json.dumps({**self.recipe, **options, "data": sets}))

    def shards(self) -> Iterator[tuple[str, int]]:
        """Yield (split, number) of every file."""
        for split in self.splits:
            for number in range(-(-self.length(split) // self.records_per_shard)):
                yield split, number


def encode(
    job: Job,
    *,
    process_index: int = 0,
    process_count: int = 1,
    batch: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> bool:
    """Encode this process's files; whoever ends last completes the folder.

    Files that are there already, from before a kill, are left as they are. The processes need share
    nothing but the file system; a process that died is started again alone.

    Args:
      job: the same in every process.
      process_index, process_count: which files are written here.
      batch: pictures encoded at a time.
      progress: told how many more latents of this process's files are done.
    Returns:
      whether the folder is complete; one that this very job has made is left as it is.
    Raises:
      ValueError: the folder holds something else, a job with another recipe was begun, a picture
        cannot be read (says which), or a disk that cannot be written.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"expected 0 <= process_index < process_count, got {process_index} of {process_count}"
        )
    try:
        if _is_done(job):
            return True
        code = _begin(job)
        for split, number in list(job.shards())[process_index::process_count]:
            _write_shard(job, code, split, number, batch, progress)
        return _complete(job)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot write latents to {job.out}: {error}") from error


def _is_done(job: Job) -> bool:
    """Return whether the folder is there, whole, and of this job; refuse any other that is not empty."""
    if not job.out.exists() or (job.out.is_dir() and not any(job.out.iterdir())):
        return False
    recipe = job.out / RECIPE
    if not recipe.is_file() or json.loads(recipe.read_text()) != job.whole_recipe():
        raise ValueError(f"{job.out} is there and not empty; latents are written to a new folder")
    return True


def _publish(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file that the first of several processes makes and the others leave as it is."""
    if file.exists():
        return
    own = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    try:
        write(own)
        with suppress(FileExistsError):
            os.link(own, file)
    finally:
        own.unlink(missing_ok=True)


def _begin(job: Job) -> Code:
    """Make the working folder or join those who have; return the code, fitted by whoever came first.

    Nothing is on disk until the code is fitted, so that options that do not fit leave nothing behind.
    """
    recipe, file = job.working / RECIPE, job.working / DECODER
    if recipe.exists():
        _check_recipe(job, recipe)
    # The first one's for all: bits may differ between machines.
    fitted = None if file.exists() else job.fit(next(iter(job.splits.values())))
    for split in job.splits:
        (job.working / split).mkdir(parents=True, exist_ok=True)
    _publish(recipe, _writes(json.dumps(job.whole_recipe(), indent=1)))
    _check_recipe(job, recipe)
    if fitted is not None:
        _publish(file, fitted.save)
    return load_code(file)


def _check_recipe(job: Job, file: Path) -> None:
    found, wanted = json.loads(file.read_text()), job.whole_recipe()
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{job.working} was begun with {name}={found.get(name)!r}, and this is "
                f"{name}={wanted.get(name)!r}; take that again, or delete the folder"
            )


def _said(job: Job, split: str, number: int) -> Path:
    """Return the file that says that a file of latents is whole."""
    return (job.working / split / shard_name(number)).with_suffix(".json")


def _write_shard(
    job: Job,
    code: Code,
    split: str,
    number: int,
    batch: int,
    progress: Callable[[int], None],
) -> None:
    """Write one file under another name, rename it, and then say that it is whole."""
    first = number * job.records_per_shard
    last = min(first + job.records_per_shard, job.length(split))
    said, name = _said(job, split, number), shard_name(number)
    if said.exists():
        progress(last - first)
        return
    dataset = job.splits[split]
    own = job.working / split / f".{name}.{os.getpid()}"
    try:
        writer = ShardWriter(own, name, first)
        try:
            for start in range(first, last, batch):
                places = np.arange(start, min(start + batch, last))
                pictures, labels = _read(dataset, places)
                latents = {**code.encode(pictures), "label": labels}
                writer.add(checked(latents, dataset.num_classes, job.dtype))
                progress(len(places))
        except BaseException:
            with suppress(ValueError):
                writer.close()
            raise
        written = writer.close()
        os.replace(own, job.working / split / name)
        _publish(said, lambda temporary: temporary.write_text(json.dumps(written.to_json())))
    finally:
        own.unlink(missing_ok=True)


def _read(dataset: Dataset, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures at these places; places beyond the set are its pictures mirrored."""
    examples = dataset.read(places % dataset.length)
    pictures, beyond = examples["image"], places >= dataset.length
    pictures[beyond] = pictures[beyond, :, ::-1]
    return pictures, examples["label"]


def _complete(job: Job) -> bool:
    """Add the indices and give the folder its name, where every file is there."""
    if not all(_said(job, split, number).exists() for split, number in job.shards()):
        return job.out.exists()
    try:
        for split, dataset in job.splits.items():
            said = [_said(job, s, number) for s, number in job.shards() if s == split]
            shards = [Written.from_json(json.loads(file.read_text())) for file in said]
            index = index_of(
                shards,
                name=job.out.name,
                num_classes=dataset.num_classes,
                class_names=dataset.class_names,
            )
            folder = job.working / split
            _publish(folder / INDEX, _writes(json.dumps(index, indent=1)))
            _publish(folder / DECODER, _copies(job.working / DECODER))
            if dataset.captions is not None:
                captions = list(dataset.captions()) * (2 if job.mirrored else 1)
                _publish(folder / OF_LATENTS, functools.partial(write_captions, captions=captions))
        os.rename(job.working, job.out)
    except FileNotFoundError:
        # Another process saw the last file too, and was first.
        if not (job.out / RECIPE).exists():
            raise
    for left in [*job.out.rglob(".latents-*"), *job.out.rglob("latents-*.json")]:
        left.unlink(missing_ok=True)
    return True


def _writes(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def _copies(source: Path) -> Callable[[Path], object]:
    return lambda file: shutil.copyfile(source, file)
