"""A folder of pictures, with one subfolder a class, or captions, or both."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int

from guidedflow.data.captions import folder_captions, with_captions
from guidedflow.data.dataset import Batch, Dataset, Indices, remember
from guidedflow.data.images import DECODE_ERRORS, decode_file, size_of
from guidedflow.registry import choose

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def split_folder(root: Path, split: str, whole: bool) -> Path:
    """Return where a split lies: the subfolder of its name, or `root` itself as "train".

    Args:
      root: the folder that was named.
      split: the split that was asked for.
      whole: `root` itself holds a set, when it has no subfolder named after the split.
    Raises:
      ValueError: no such folder, or no such split (with the nearest).
    """
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    if (root / split).is_dir():
        return root / split
    if whole and split == "train":
        return root
    known = {child.name: child for child in root.iterdir() if child.is_dir()}
    return choose(f"split of {root}", split, {"train": root} if whole else known)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    root: Path
    files: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, indices: Indices) -> Batch:
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            file = self.root / self.files[index]
            try:
                images[row] = decode_file(file, self.size, 3)
            except DECODE_ERRORS as error:
                raise ValueError(f"cannot read {file} (example {index}): {error}") from error
        return {"image": images, "label": self.labels[indices]}


def open_folder(
    path: str | os.PathLike,
    *,
    split: str = "train",
    image_size: int | tuple[int, int] | None,
    cache_bytes: int,
) -> Dataset:
    """Open path/class/picture, or path/split/class/picture where the split has its own folder.

    Classes are the sorted names of the subfolders; examples are sorted by class, then by file name.
    Without a picture in any subfolder, those in path itself are of one class.  Captions are read as
    `folder_captions` says.  Pictures are decoded to colour, scaled to cover `image_size` and cropped
    at the centre.

    Args:
      path: the folder.
      split: the subfolder of `path` that holds the classes; without one, `path` is "train".
      image_size: side or (height, width).
      cache_bytes: decoded images are remembered where all of them fit in this.
    Raises:
      ValueError: no such folder, split or picture, no `image_size`, or captions that do not match the
        pictures.
    """
    root = Path(path).expanduser()
    if image_size is None:
        raise ValueError(f"pictures in {root} may differ in size: give image_size")
    size = size_of(image_size)
    root = split_folder(root, split, whole=True)
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(e.name for e in os.scandir(root / name) if _is_picture(e.name))
        files += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    if not files:
        classes = []
        files = sorted(e.name for e in os.scandir(root) if _is_picture(e.name))
        labels = [0] * len(files)
    if not files:
        raise ValueError(
            f"no pictures in {root} or its class subfolders: expected {', '.join(sorted(SUFFIXES))}"
        )
    pictures = _Pictures(root, tuple(files), np.array(labels, np.int32), size)
    shape = (*size, 3)
    dataset = Dataset(
        source=remember(pictures, shape, np.uint8, cache_bytes),
        image_shape=shape,
        num_classes=max(1, len(classes)),
        class_names=tuple(classes),
        identity={
            "name": f"folder:{Path(path).name}",
            # Added, removed and renamed files change the numbers of the examples.
            "version": hashlib.sha256("\n".join(files).encode()).hexdigest()[:12],
            "split": split,
            "length": len(files),
            "image_shape": list(shape),
        },
    )
    captions = folder_captions(root, files)
    return dataset if captions is None else with_captions(dataset, captions)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
