"""Captions: caption files of a folder, and the draw of one caption if an image has several."""

import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guidedflow.data.dataset import Batch, Dataset, Draws, Indices, Source
from guidedflow.data.draws import hash64

METADATA = ("metadata.jsonl", "metadata.csv")
OF_LATENTS = "captions.json"
Captions = tuple[str, ...]

_PURPOSE = 4


def draw_caption(batch: Batch, draws: Draws) -> Batch:
    """Choose one of the "captions" of each example by the example's draw, and add it as "caption".

    k = floor(u n),  n captions, u in [0, 1) from 32 bits of the example's draw

    In a pipeline the draw is a function of the seed, the epoch and the example's position in it.
    """
    top = (hash64(draws, _PURPOSE) >> np.uint64(32)).tolist()
    rest = dict(batch)
    caption = np.empty(len(draws), object)
    for row, (word, texts) in enumerate(zip(top, rest.pop("captions"), strict=True)):
        caption[row] = texts[word * len(texts) >> 32] if texts else ""
    return {**rest, "caption": caption}


@dataclasses.dataclass(frozen=True, eq=False)
class _Captioned:
    """A source that also returns the captions of its examples."""

    source: Source
    captions: tuple[Captions, ...]

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Indices) -> Batch:
        chosen = np.empty(len(indices), object)
        chosen[:] = [self.captions[index] for index in indices.tolist()]
        return {**self.source.gather(indices), "captions": chosen}


def with_captions(dataset: Dataset, captions: Sequence[Captions]) -> Dataset:
    """Return the data set with one or more captions per example; each reading draws one of them.

    The captions are part of its identity.

    Raises:
      ValueError: there is not one tuple of captions per example.
    """
    if len(captions) != len(dataset):
        raise ValueError(f"expected captions of {len(dataset)} examples, got {len(captions)}")
    source = _Captioned(dataset.source, tuple(captions))
    digest = hashlib.sha256(json.dumps(source.captions).encode()).hexdigest()[:12]
    version = f"{dataset.identity['version']}-{digest}"
    return dataclasses.replace(
        dataset,
        source=source,
        identity={**dataset.identity, "version": version},
        captions=functools.partial(iter, source.captions),
    ).map(draw_caption)


def write_captions(file: Path, captions: Iterable[Captions]) -> None:
    """Write the captions of all examples of a set of latents, in order, as JSON."""
    file.write_text(json.dumps([list(texts) for texts in captions]), encoding="utf-8")


def read_captions(file: Path) -> list[Captions]:
    """Return what `write_captions` wrote.

    Raises:
      ValueError: the file cannot be read or has another content; the message names the file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(text, str) for texts in found for text in texts):
            raise ValueError("expected a list of lists of texts")
        return [tuple(texts) for texts in found]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read the captions {file}: {error}") from error


def folder_captions(root: Path, files: Sequence[str]) -> list[Captions] | None:
    """Return the captions of images in a folder, or None if it has no caption file.

    Captions are read from root/metadata.jsonl or root/metadata.csv, with `file_name` and `text`, or from
    NAME.txt beside NAME.png, one caption per line.  An image may have several rows or lines.

    Args:
      root: the folder.
      files: the images, relative to it.
    Raises:
      ValueError: an image has no caption, a caption has no image, both kinds of metadata exist, or a file
        cannot be read; the message names the file and the line.
    """
    tables = [root / name for name in METADATA if (root / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{root} holds both {METADATA[0]} and {METADATA[1]}; keep one")
    found: dict[str, list[str]] = {}
    if tables:
        known = set(files)
        for place, file, text in _rows(tables[0]):
            if file not in known:
                raise ValueError(f"{place} names {file!r}, which is no image in {root}")
            found.setdefault(file, []).append(text)
        where = f"in {tables[0]}"
    else:
        found = _beside(root, files)
        where = f"in a .txt file beside it in {root}"
    if not found:
        return None
    for file in files:
        if file not in found:
            raise ValueError(f"image {file!r} has no caption {where}")
    return [tuple(found[file]) for file in files]


def is_caption_file(name: str) -> bool:
    """Whether a file has a name that `folder_captions` reads."""
    return name in METADATA or name.endswith(".txt")


def _rows(table: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place, file name, text) of every row."""
    records = _json_lines(table) if table.suffix == ".jsonl" else _csv_lines(table)
    try:
        for number, record in records:
            place = f"{table} line {number}"
            for key in ("file_name", "text"):
                if not isinstance(record, dict) or not isinstance(record.get(key), str):
                    raise ValueError(f"{place}: expected file_name and text, got {record!r:.80}")
            yield place, record["file_name"].removeprefix("./"), record["text"].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {table}: {error}") from error


def _json_lines(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{table} line {number} is not JSON: {error}") from error


def _csv_lines(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            yield reader.line_num, record


def _beside(root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Read NAME.txt beside each NAME.png, if at least one image has such a file."""
    images = {Path(file).with_suffix(".txt"): file for file in files}
    folders = sorted({path.parent for path in images})
    texts = [folder / t.name for folder in folders for t in sorted((root / folder).glob("*.txt"))]
    if not any(text in images for text in texts):
        return {}
    found = {}
    for text in texts:
        if text not in images:
            raise ValueError(f"{root / text} is a caption of no image")
        try:
            lines = (root / text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {root / text}: {error}") from error
        found[images[text]] = [line.strip() for line in lines if line.strip()] or [""]
    return found
