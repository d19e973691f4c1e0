"""Reading prepared image sets of tensorflow-datasets from disk, without TensorFlow.

Nothing here uses the network. A set is found by the folders that tensorflow-datasets writes
(name/[config/]version), and its features are read from the files in them.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import message as protobuf
from jaxtyping import UInt8

from guidedflow.data.captions import draw_caption
from guidedflow.data.dataset import Batch, Dataset, Indices, remember
from guidedflow.data.images import (
    DECODE_ERRORS,
    check_channels,
    decode_file,
    resize_array,
    size_of,
)
from guidedflow.data.records import Records, Shard
from guidedflow.registry import choose

# Errors of a record that is complete but is not an example with these features.
_PARSE_ERRORS = (KeyError, TypeError, IndexError, protobuf.DecodeError)

_BLOCK = 1024

_SPEC = re.compile(r"(?P<path>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")


def find_prepared(name: str, roots: Sequence[Path]) -> Path | None:
    """Return the folder of the newest prepared version of `name[/config][:version]`, or None.

    Raises:
      ValueError: the name has another form, or the set has several configs and the name has none.
    """
    parsed = _SPEC.fullmatch(name)
    if parsed is None:
        raise ValueError(f"expected a data set as name[/config][:1.2.3], got {name!r}")
    for root in roots:
        folder = root / parsed["path"]
        found = _versions(folder)
        if not found and "/" not in parsed["path"] and folder.is_dir():
            configs = sorted(child.name for child in folder.iterdir() if _versions(child))
            if len(configs) > 1:
                raise ValueError(
                    f"data set {name!r} has several configs in {root}: "
                    + ", ".join(f"{parsed['path']}/{config}" for config in configs)
                )
            found = _versions(folder / configs[0]) if configs else {}
        if parsed["version"] is not None:
            found = {key: path for key, path in found.items() if path.name == parsed["version"]}
        if found:
            return found[max(found)]
    return None


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    if not folder.is_dir():
        return {}
    return {
        tuple(int(part) for part in child.name.split(".")): child
        for child in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and (child / "dataset_info.json").exists()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    """Examples of one split, decoded to the requested size."""

    records: Records
    features: tfds.features.FeaturesDict
    image: str
    label: str | None
    caption: str | None
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: Indices) -> Batch:
        images = np.empty((len(indices), *self.size, self.channels), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        captions = np.empty(len(indices), object)
        for row, example in enumerate(self._examples(indices)):
            try:
                images[row] = self._picture(example[self.image])
                labels[row] = 0 if self.label is None else example[self.label]
            except (*DECODE_ERRORS, *_PARSE_ERRORS) as error:
                raise self._undecodable(int(indices[row]), error) from error
            captions[row] = self._texts(example)
        batch: Batch = {"image": images, "label": labels}
        return batch if self.caption is None else {**batch, "captions": captions}

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Iterate over the captions of all examples, in order; images are read but not decoded."""
        for start in range(0, len(self), _BLOCK):
            block = np.arange(start, min(start + _BLOCK, len(self)))
            for example in self._examples(block):
                yield self._texts(example)

    def _examples(self, indices: Indices) -> Iterator[dict]:
        # tfds does not decode the images; `gather` does, because it knows the target size.
        skip = {self.image: tfds.decode.SkipDecoding()} if self._encoded else None
        for index, record in zip(indices.tolist(), self.records.read(indices), strict=True):
            try:
                yield self.features.deserialize_example_np(record, decoders=skip)
            except (*DECODE_ERRORS, *_PARSE_ERRORS) as error:
                raise self._undecodable(index, error) from error

    def _undecodable(self, index: int, error: Exception) -> ValueError:
        return ValueError(f"cannot decode {self.records.place(index)}: {error}")

    def _texts(self, example: dict) -> tuple[str, ...]:
        if self.caption is None:
            return ()
        stored = example[self.caption]
        texts = stored["text"] if isinstance(stored, dict) else stored
        return tuple(text.decode() for text in np.atleast_1d(np.asarray(texts, object)))

    @property
    def _encoded(self) -> bool:
        return isinstance(self.features[self.image], tfds.features.Image)

    def _picture(self, stored: bytes | np.ndarray) -> UInt8[np.ndarray, "h w c"]:
        if self._encoded:
            return decode_file(bytes(stored), self.size, self.channels)
        return resize_array(np.asarray(stored), self.size)


def open_prepared(
    folder: Path,
    *,
    name: str,
    split: str,
    image_size: int | tuple[int, int] | None,
    cache_bytes: int,
) -> Dataset:
    """Open one split of a prepared set.

    Args:
      folder: the folder with its dataset_info.json.
      name: name of the set, for messages and the identity.
      split: a split of the set, or a part of one: "train", "train[:90%]".
      image_size: side or (height, width) to resize and crop to; None keeps a fixed stored size.
      cache_bytes: decoded images are kept in memory if all of them fit in this size.
    Raises:
      ValueError: files cannot be read, the file format is another, the split is unknown, there is no
        image feature, or stored sizes vary and `image_size` is None.
    """
    info = _description(folder)
    if info.file_format is None or info.file_format.value != "array_record":
        stored_as = "an unknown format" if info.file_format is None else info.file_format.value
        raise ValueError(
            f"{folder} is stored as {stored_as}; only array_record is read without TensorFlow: "
            f"prepare it again in another folder with: guidedflow prepare {name} --data_dir=DIR"
        )
    image, label, caption = _roles(name, info.features)
    stored = info.features[image].shape
    channels = stored[-1]
    check_channels(channels)
    if image_size is None and None in stored:
        raise ValueError(f"the images of {name!r} differ in size: give image_size")
    size = size_of(stored[:2] if image_size is None else image_size)
    shards = _shards(info, name, split)
    records = Records(shards)
    examples = _Examples(records, info.features, image, label, caption, size, channels)
    classes = info.features[label] if label is not None else None
    return Dataset(
        source=remember(examples, (*size, channels), np.uint8, cache_bytes),
        image_shape=(*size, channels),
        num_classes=classes.num_classes if classes is not None else 1,
        class_names=tuple(classes.names) if classes is not None else (),
        identity={
            "name": name,
            "version": str(info.version),
            "split": split,
            "length": len(records),
            "image_shape": [*size, channels],
        },
        maps=() if caption is None else (draw_caption,),
        captions=None if caption is None else examples.captions,
    )


def _description(folder: Path) -> tfds.core.DatasetInfo:
    try:
        return tfds.builder_from_directory(os.fspath(folder)).info
    except Exception as error:
        # Damaged metadata raises protobuf, JSON, key or type errors.
        raise ValueError(f"cannot read the data set description in {folder}: {error}") from error


def _shards(info: tfds.core.DatasetInfo, name: str, split: str) -> list[Shard]:
    choose(f"split of {name!r}", split.split("[")[0], info.splits)
    try:
        parts = info.splits[split].file_instructions
    except Exception as error:
        # tfds raises several kinds of errors for a bad slice.
        raise ValueError(
            f"expected a split like 'train' or 'train[:90%]', got {split!r}: {error}"
        ) from error
    return [Shard(p.filename, p.skip, p.take, p.examples_in_shard) for p in parts]


def _roles(name: str, features: tfds.features.FeaturesDict) -> tuple[str, str | None, str | None]:
    """Return which features are the image, the label and the captions."""
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        or (len(feature.shape or ()) == 3 and feature.np_dtype == np.uint8)
    ]
    if not images:
        raise ValueError(f"data set {name!r} has no image; its features: {', '.join(features)}")
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    captions = [k for k in ("caption", "captions") if k in features and _holds_text(features[k])]
    return (
        "image" if "image" in images else images[0],
        "label" if "label" in labels else labels[0] if labels else None,
        captions[0] if captions else None,
    )


def _holds_text(feature: tfds.features.FeatureConnector) -> bool:
    """Whether a feature is a text, several texts, or several records with a "text", as in COCO."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict) and "text" in feature:
        feature = feature["text"]
    return isinstance(feature, tfds.features.Text)
