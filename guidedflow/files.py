"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in what goes wrong when it is written; a full disk alone says no name.

    Raises:
      OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name in `path`'s folder, which becomes `path` when the block ends well.

    When it does not, the temporary file is removed and `path` stays as it was.

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
    """Refuse a file that could not be written, before hours are spent on what goes into it.

    Raises:
      OSError: its folder does not exist or takes no file.
      ValueError: it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    probe = path.with_name(f".{path.stem}.{os.getpid()}.probe")
    with naming(path):
        probe.touch()
        probe.unlink()
