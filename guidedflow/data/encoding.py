"""Encoding of whole data sets to latents, by any number of processes; it resumes after a kill.

Each process writes its own files. They are written to a hidden folder `.NAME-encoding` next to the output
folder: the recipe, the autoencoder, and for each split its files, each with a marker that it is complete.
The process that writes the last file adds the indices and renames the folder. A folder with the final
name is therefore complete.
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
    """What to encode, and where to write it.

    Attributes:
      out: the folder to make: out/split for every split.
      splits: data sets, all encoded by one autoencoder, which is fitted to the first.
      fit: data set -> autoencoder.
      recipe: the settings of `fit` as JSON values; a job resumes only with the same recipe.
      dtype: type of the stored numbers: "float16" or "float32".
      records_per_shard: examples per file.
      mirrored: also add every image mirrored left to right, after all images.
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
        """The folder in which the latents are written until they are complete."""
        return self.out.with_name(f".{self.out.name}-encoding")

    def length(self, split: str) -> int:
        """Return the number of latents of a split."""
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
    """Encode this process's files; the process that finishes last completes the folder.

    Files that exist from before a kill are kept. The processes share only the file system. If one process
    died, only this process must be started again.

    Args:
      job: the same in every process.
      process_index, process_count: select the files that this process writes.
      batch: images encoded at a time.
      progress: called with the number of further latents that this process has finished.
    Returns:
      whether the folder is complete. A folder that the same job completed before is not changed.
    Raises:
      ValueError: the folder has other content, a job with another recipe was begun, an image cannot
        be read (the message names it), or the disk cannot be written.
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
    """Return whether this job has completed the folder; raise ValueError if it has other content."""
    if not job.out.exists() or (job.out.is_dir() and not any(job.out.iterdir())):
        return False
    recipe = job.out / RECIPE
    if not recipe.is_file() or json.loads(recipe.read_text()) != job.whole_recipe():
        raise ValueError(f"{job.out} is there and not empty; latents are written to a new folder")
    return True


def _publish(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file unless another process has written it first."""
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
    """Make the working folder, unless it exists, and return the autoencoder that the first process fitted.

    Nothing is written until the autoencoder is fitted, so that wrong options leave no files behind.
    """
    recipe, file = job.working / RECIPE, job.working / DECODER
    if recipe.exists():
        _check_recipe(job, recipe)
    # All processes use the first one's autoencoder, because the fit may differ in bits between machines.
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
    """Return the marker file which says that a file of latents is complete."""
    return (job.working / split / shard_name(number)).with_suffix(".json")


def _write_shard(
    job: Job,
    code: Code,
    split: str,
    number: int,
    batch: int,
    progress: Callable[[int], None],
) -> None:
    """Write one file under a temporary name, rename it, and then write its marker file."""
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
    """Return the images at these indices; an index beyond the set is a mirrored image."""
    examples = dataset.read(places % dataset.length)
    pictures, beyond = examples["image"], places >= dataset.length
    pictures[beyond] = pictures[beyond, :, ::-1]
    return pictures, examples["label"]


def _complete(job: Job) -> bool:
    """If all files exist, add the indices and give the folder its final name."""
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
        # Another process also saw the last file and renamed the folder first.
        if not (job.out / RECIPE).exists():
            raise
    for left in [*job.out.rglob(".latents-*"), *job.out.rglob("latents-*.json")]:
        left.unlink(missing_ok=True)
    return True


def _writes(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def _copies(source: Path) -> Callable[[Path], object]:
    return lambda file: shutil.copyfile(source, file)
