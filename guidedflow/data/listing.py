"""What a folder of pictures holds: its classes, its pictures in order, and what is left out."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from guidedflow.data.images import DECODE_ERRORS, check_header

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Opening a file waits for the disk, or for the network before it.
_THREADS = 16
# Names said for each reason.
_NAMED = 3


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder.

    Attributes:
      classes: one name a class, sorted.
      files: paths below the folder, sorted by class, then by name.
      labels: the class of each, by its place in `classes`.
      left_out: why, to the names of the files and folders that are not used.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def without(self, known: Callable[[str], bool]) -> Self:
        """Return this listing, with files that something else reads no longer among what is left out."""
        rest = {
            reason: [name for name in names if not known(name)]
            for reason, names in self.left_out.items()
        }
        return replace(self, left_out={reason: names for reason, names in rest.items() if names})

    def leftovers(self) -> str:
        """Return what was left out, counted by reason and named, as one line; "" for nothing."""
        return "; ".join(
            f"{reason}: {len(names)} ({', '.join(names[:_NAMED])}{', …' * (len(names) > _NAMED)})"
            for reason, names in sorted(self.left_out.items())
        )


def list_pictures(root: Path, one_class: str) -> Listing:
    """List root/class/picture, or root/picture as a single class where no folder holds pictures.

    A class is a folder directly below `root` with at least one readable picture directly in it; a
    picture is a file with one of `SUFFIXES` whose beginning can be read. Hidden names and whatever
    else lies there are left out.

    Args:
      root: the folder.
      one_class: the name of the class where pictures lie in `root` itself.
    Raises:
      ValueError: a folder or file that may not be read, or a class whose name is not text.
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
    """Return the first folder in, or deep below, `root` that directly holds files named as pictures."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if any(_named_as_picture(name) for name in files):
            return folder
    return None


def holds_pictures(folder: Path) -> bool:
    """Return whether files named as pictures lie directly in `folder`."""
    return any(_named_as_picture(name) for name in _names(folder))


def _entries(
    root: Path, folder: str, left_out: dict[str, list[str]]
) -> tuple[list[str], list[str]]:
    """Return what is named as a picture, and the folders, both sorted; note the rest."""
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
    """Return the readable pictures of each class that has one; note the others."""
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
    """Return why a file is no picture, None where it is one."""
    try:
        check_header(file)
    except DECODE_ERRORS as error:
        # A disk or a permission that fails today would silently make another data set.
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
