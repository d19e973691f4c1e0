"""A folder of images as a data set: one subfolder per class, or captions, or both."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from guidedflow.data.captions import folder_captions, is_caption_file, with_captions
from guidedflow.data.dataset import Batch, Dataset, Indices, remember
from guidedflow.data.images import DECODE_ERRORS, decode_file, size_of
from guidedflow.data.listing import (
    SUFFIXES,
    Listing,
    holds_pictures,
    list_pictures,
    pictures_below,
)
from guidedflow.registry import choose

# If a folder with one of these names directly contains images, the folders beside it are splits too.
_SPLITS = frozenset({"train", "training", "test", "val", "valid", "validation", "dev", "eval"})
logger = logging.getLogger(__name__)


def split_folder(root: Path, split: str, whole: bool) -> Path:
    """Return the folder of a split: the subfolder of its name, or `root` itself as "train".

    Args:
      root: the data set's folder.
      split: the name of the split.
      whole: whether `root` itself is a set if it has no subfolder with the name of the split.
    Raises:
      ValueError: there is no such folder, or no such split (the message has the nearest name).
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
                raise ValueError(
                    f"cannot read {file} (example {index}): {error}; mend it or take it away"
                ) from error
        return {"image": images, "label": self.labels[indices]}


def open_folder(
    path: str | os.PathLike,
    *,
    split: str = "train",
    image_size: int | tuple[int, int] | None,
    cache_bytes: int,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Open path/class/image, or path/split/class/image if the split has its own folder.

    Classes are the sorted names of the folders with a readable image. Examples are sorted by class, then
    by file name. Images that are not in a subfolder are one class with the name of `path`. Images are
    decoded to colour, scaled to cover `image_size` and cropped at the centre. Files and folders that are
    left out are counted and named in one line of this module's logger. Captions are read by
    `folder_captions`.

    Args:
      path: the folder.
      split: the subfolder of `path` that contains the classes; if there is none, `path` is "train".
      image_size: side or (height, width).
      cache_bytes: decoded images are kept in memory if all of them fit in this size.
      class_names: gives the numbers of the classes, for a split that may lack some of them.
    Raises:
      ValueError: there is no such folder, split or image, `image_size` is missing, a file or folder
        may not be read, a class is not in `class_names`, or captions do not match the images.
    """
    root = Path(path).expanduser()
    if image_size is None:
        raise ValueError(f"pictures in {root} may differ in size: give image_size")
    size = size_of(image_size)
    one_class = root.resolve().name or "pictures"
    root = _folder_of_split(root, split)
    listing = list_pictures(root, one_class)
    captions = folder_captions(root, listing.files)
    if captions is not None:
        listing = listing.without(is_caption_file)
    _check_pictures(root, listing)
    classes = listing.classes if class_names is None else tuple(class_names)
    numbers = {name: number for number, name in enumerate(classes)}
    for name in listing.classes:
        choose(f"class in {root}", name, numbers)
    labels = np.array([numbers[listing.classes[label]] for label in listing.labels], np.int32)
    pictures = _Pictures(root, listing.files, labels, size)
    shape = (*size, 3)
    dataset = Dataset(
        source=remember(pictures, shape, np.uint8, cache_bytes),
        image_shape=shape,
        num_classes=len(classes),
        class_names=classes,
        identity={
            "name": f"folder:{Path(path).name}",
            # Added, removed or renamed files change the indices of the examples.
            "version": _digest(listing.files),
            "split": split,
            "length": len(listing.files),
            "image_shape": list(shape),
            "class_names": list(classes),
        },
    )
    return dataset if captions is None else with_captions(dataset, captions)


def _folder_of_split(root: Path, split: str) -> Path:
    """Return the folder of a split; a class with the name of a split counts as a class."""
    if not (root / split).is_dir() or not holds_pictures(root / split):
        return split_folder(root, split, whole=True)
    inner = any(holds_pictures(child) for child in _folders(root / split))
    siblings = [child for child in _folders(root) if holds_pictures(child)]
    if inner or all(child.name in _SPLITS for child in siblings):
        return root / split
    return choose(f"split of {root}", split, {"train": root})


def _folders(root: Path) -> list[Path]:
    return [c for c in root.iterdir() if not c.name.startswith(".") and c.is_dir()]


def _check_pictures(root: Path, listing: Listing) -> None:
    """Log what is left out of a listing; raise ValueError if there is no image."""
    left_out = listing.leftovers()
    if listing.files:
        if left_out:
            logger.warning("left out of %s: %s", root, left_out)
        return
    deeper = pictures_below(root)
    raise ValueError(
        f"no pictures in {root}: expected class subfolders with {', '.join(sorted(SUFFIXES))}"
        + (f"; found pictures in {deeper}: name the folder around it" if deeper else "")
        + (f"; left out: {left_out}" if left_out else "")
    )


def _digest(files: Sequence[str]) -> str:
    names = "\n".join(files).encode("utf-8", "surrogateescape")
    return hashlib.sha256(names).hexdigest()[:12]
