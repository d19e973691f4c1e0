"""The content of a folder of images: its classes, its images in order, and what is left out."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from guidedflow.data.images import DECODE_ERRORS, check_header

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Threads that open files at once, because opening a file waits for the disk or the network.
_THREADS = 16
# Number of names in the message for each reason.
_NAMED = 3


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
      classes: one name per class, sorted.
      files: paths relative to the folder, sorted by class, then by name.
      labels: the class of each file, as its index in `classes`.
      left_out: reason -> the names of the files and folders that are not used.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def without(self, known: Callable[[str], bool]) -> Self:
        """Return this listing without the files for which `known` is true in `left_out`."""
        rest = {
            reason: [name for name in names if not known(name)]
            for reason, names in self.left_out.items()
        }
        return replace(self, left_out={reason: names for reason, names in rest.items() if names})

    def leftovers(self) -> str:
        """Return one line with the count and names left out for each reason; "" if nothing was."""
        return "; ".join(
            f"{reason}: {len(names)} ({', '.join(names[:_NAMED])}{', …' * (len(names) > _NAMED)})"
            for reason, names in sorted(self.left_out.items())
        )


def list_pictures(root: Path, one_class: str) -> Listing:
    """List root/class/image, or root/image as a single class if no subfolder contains images.

    A class is a folder directly below `root` that directly contains at least one readable image. An
    image is a file with one of `SUFFIXES` whose header can be read. Hidden names and all other files
    are left out.

    Args:
      root: the folder.
      one_class: the name of the class if images are in `root` itself.
    Raises:
      ValueError: a folder or file may not be read, or the name of a class is not text.
    """
    left_out: dict[str, list[str]] = {}
    loose, folders = _entries(root, "", left_out)
    named: dict[str, list[str]] = {}
    for name in folders:
        if _is_around(root / name, root):
            _note(left_out, "link to a folder around it", name)
            continue
        named[name], nested = _entries(root, name, left_out)
        for inner in nested:
            _note(left_out, "folder inside a class", inner)
    found = _readable(root, named, left_out)
    for name in sorted(named.keys() - found.keys()):
        _note(left_out, "folder without a readable picture", name)
    if found:
        for name in loose:
            _note(left_out, "picture outside the class folders", name)
    else:
        found = _readable(root, {one_class: loose}, left_out)
    return Listing(
        classes=tuple(found),
        files=tuple(file for files in found.values() for file in files),
        labels=tuple(i for i, files in enumerate(found.values()) for _ in files),
        left_out=left_out,
    )


def pictures_below(root: Path) -> str | None:
    """Return the first folder at or below `root` that directly contains files with image suffixes."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if any(_named_as_picture(name) for name in files):
            return folder
    return None


def holds_pictures(folder: Path) -> bool:
    """Return whether `folder` directly contains files with image suffixes."""
    return any(_named_as_picture(name) for name in _names(folder))


def _entries(
    root: Path, folder: str, left_out: dict[str, list[str]]
) -> tuple[list[str], list[str]]:
    """Return the files with image suffixes and the folders, both sorted; note all others."""
    pictures, folders = [], []
    for name in _names(root / folder):
        path = f"{folder}/{name}" if folder else name
        if name.startswith("."):
            _note(left_out, "hidden", path)
        elif os.path.isdir(root / path):
            folders.append(path)
        elif not _named_as_picture(name):
            _note(left_out, "not named as a picture", path)
        elif not os.path.isfile(root / path):
            _note(left_out, "not a file", path)
        else:
            pictures.append(path)
    return pictures, folders


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"cannot list {folder}: {error.strerror or error}") from error


def _named_as_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _is_around(folder: Path, root: Path) -> bool:
    """Return whether `folder` is a link to `root` or to a folder around it."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def _readable(
    root: Path, named: dict[str, list[str]], left_out: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Return the readable images of each class that has any; note the others."""
    files = [file for pictures in named.values() for file in pictures]
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = dict(
            zip(files, threads.map(_problem, (root / file for file in files)), strict=True)
        )
    for file, problem in problems.items():
        if problem is not None:
            _note(left_out, "not readable as a picture", f"{file}: {problem}")
    kept = {
        name: [file for file in pictures if problems[file] is None]
        for name, pictures in named.items()
    }
    return {_text(root, name): pictures for name, pictures in kept.items() if pictures}


def _problem(file: Path) -> str | None:
    """Return the reason why a file is not an image; None if it is one."""
    try:
        check_header(file)
    except DECODE_ERRORS as error:
        # If a file were skipped after a disk or permission error, the data set would change silently.
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"cannot read {file}: {error.strerror}") from error
        return str(error).replace(f" {str(file)!r}", "")
    return None


def _text(root: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the name of the class folder {name!r} in {root} is not UTF-8; rename it"
        ) from None
    return name


def _note(left_out: dict[str, list[str]], reason: str, name: str) -> None:
    left_out.setdefault(reason, []).append(name)
