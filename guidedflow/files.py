"""Writing files so that a file is either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to the message of an OSError raised in the block; a full disk names no file.

    Raises:
      OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name in `path`'s folder; the file is renamed to `path` if the block succeeds.

    If the block raises, the temporary file is removed and `path` is not changed.

    Raises:
      OSError: the file cannot be written; the message names it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise if a file cannot be written, before hours are spent on computing its content.

    Raises:
      OSError: its folder does not exist or is not writable.
      ValueError: it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    probe = path.with_name(f".{path.stem}.{os.getpid()}.probe")
    with naming(path):
        probe.touch()
        probe.unlink()
