"""Writing a tensorflow-datasets set completely or not at all."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds


def build_once(
    builder: Callable[[Path], tfds.core.DatasetBuilder],
    name: str,
    version: str,
    data_dir: str | os.PathLike,
    *,
    what: str,
) -> Path:
    """Write a set to a folder in `data_dir`, unless it exists, and return the folder.

    It is built in a temporary folder, which is renamed when it is complete. A kill, or a second process
    that does the same, therefore leaves no partial set.

    Args:
      builder: takes the temporary folder and returns the builder that writes into it.
      name, version: of the builder; the folder is data_dir/name/version.
      data_dir: the folder of prepared sets.
      what: the set's name in messages.
    Raises:
      ValueError: the folder cannot be written; the message names it.
    """
    root = Path(data_dir).expanduser()
    final = root / name / version
    if (final / "dataset_info.json").exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".preparing-", dir=root))
    except OSError as error:
        raise ValueError(f"cannot write {what} to {root}: {error}") from error
    try:
        made = builder(scratch)
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            made.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        os.rename(scratch / name / version, final)
    except OSError as error:
        # Another process may have been first. Its folder is complete, because it was renamed too.
        if not (final / "dataset_info.json").exists():
            raise ValueError(f"cannot write {what} to {final}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final
