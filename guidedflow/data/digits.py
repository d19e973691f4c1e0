"""Scikit-learn's 1,797 handwritten digits, 8x8, as a tensorflow-datasets set.

Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository. These are the test part, which is included in scikit-learn; nothing is downloaded.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

from guidedflow.data.draws import hash64
from guidedflow.data.local_build import build_once

HELD_OUT = 300
VERSION = "1.0.0"
NAME = "guidedflow_digits"


def held_out(labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Mark the 300 held-out digits: stratified, and the same on every machine.

    Examples are ranked by (class, hash of the index); rank r is held out where
    floor((r + 1) 300 / n) > floor(r 300 / n). Each class is held out in proportion, within one example.
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
        # Importing scikit-learn takes a second and is only needed at the first use of the set.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for index in np.flatnonzero(held_out(digits.target) == test):
            yield int(index), {"image": images[index], "label": int(digits.target[index])}


def prepare_digits(data_dir: str | os.PathLike) -> Path:
    """Write the digits to a folder in `data_dir`, unless it exists, and return the folder.

    Raises:
      ValueError: the folder cannot be written; the message names it.
    """
    return build_once(_builder, NAME, VERSION, data_dir, what="the digits")


def _builder(scratch: Path) -> tfds.core.DatasetBuilder:
    return GuidedflowDigits(data_dir=os.fspath(scratch), file_format="array_record")
