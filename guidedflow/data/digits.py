"""Scikit-learn's 1,797 handwritten digits, 8x8, as a tensorflow-datasets set.

Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository; the test part of it, which ships inside scikit-learn, so nothing is downloaded.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

from guidedflow.data.draws import hash64

HELD_OUT = 300
VERSION = "1.0.0"
NAME = "guidedflow_digits"


def held_out(labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Mark the 300 held-out digits: stratified, and the same on every machine.

    Examples are ranked by (class, hash of the index); rank r is held out where
    floor((r + 1) 300 / n) > floor(r 300 / n), which takes each class in proportion, within one.
    """
    rank_of = np.lexsort((hash64(np.arange(len(labels))), labels))
    steps = np.arange(len(labels) + 1) * HELD_OUT // len(labels)
    mask = np.empty(len(labels), bool)
    mask[rank_of] = np.diff(steps) > 0
    return mask


class GuidedflowDigits(tfds.core.GeneratorBasedBuilder):
    """The digits, `train` (1,497) and `test` (300), as 8x8x1 bytes (0 to 16 stored as 0 to 255)."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8, from scikit-learn.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator:
        # Loading scikit-learn takes a second, and only the first use of the set needs it.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for index in np.flatnonzero(held_out(digits.target) == test):
            yield int(index), {"image": images[index], "label": int(digits.target[index])}


def prepare_digits(data_dir: str | os.PathLike) -> Path:
    """Write the digits under `data_dir` if they are not there yet, and return their folder.

    They are built in a temporary folder and renamed into place whole, so that neither a kill nor a
    second process doing the same leaves a part of them.

    Raises:
      ValueError: the folder cannot be written; the message names it.
    """
    root = Path(data_dir).expanduser()
    final = root / NAME / VERSION
    if (final / "dataset_info.json").exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".preparing-", dir=root))
    except OSError as error:
        raise ValueError(f"cannot write the digits to {root}: {error}") from error
    try:
        _build(scratch)
        os.rename(scratch / NAME / VERSION, final)
    except OSError as error:
        # Another process may have been first; its folder is whole, since it came by a rename too.
        if not (final / "dataset_info.json").exists():
            raise ValueError(f"cannot write the digits to {final}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _build(scratch: Path) -> None:
    builder = GuidedflowDigits(data_dir=os.fspath(scratch), file_format="array_record")
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
