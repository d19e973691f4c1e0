"""Any tensorflow-datasets image set that lies prepared on disk, read without TensorFlow.

Nothing here reaches the network: a set is found by looking at the folders that tensorflow-datasets
writes (name/[config/]version), and its features come from the files in them.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from tensorflow_datasets.core.data_sources.base import BaseDataSource

from guidedflow.data.dataset import Dataset, Indices, Remembered
from guidedflow.data.images import (
    DECODE_ERRORS,
    check_channels,
    decode_file,
    resize_array,
    size_of,
)
from guidedflow.registry import choose

_SPEC = re.compile(r"(?P<path>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")


def find_prepared(name: str, roots: Sequence[Path]) -> Path | None:
    """Return the folder of the newest prepared version of `name[/config][:version]`, or None.

    Raises:
      ValueError: the name has another form, or the set has several configs and none is named.
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
class _Records:
    """Examples of one split: array_record files, decoded to the wanted size."""

    data: BaseDataSource
    image: str
    label: str | None
    encoded: bool
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.data)

    def gather(self, indices: Indices) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, "n"]]:
        images = np.empty((len(indices), *self.size, self.channels), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            try:
                example = self.data[index]
                images[row] = self._picture(example[self.image])
            except (*DECODE_ERRORS, IndexError, KeyError, RuntimeError) as error:
                raise ValueError(f"cannot read {self._place(index)}: {error}") from error
            if self.label is not None:
                labels[row] = example[self.label]
        return images, labels

    def _picture(self, stored: bytes | np.ndarray) -> UInt8[np.ndarray, "h w c"]:
        if self.encoded:
            return decode_file(bytes(stored), self.size, self.channels)
        return resize_array(np.asarray(stored), self.size)

    def _place(self, index: int) -> str:
        within = index
        split = self.data.split
        for part in self.data.dataset_info.splits[split].file_instructions:
            if within < part.take:
                return (
                    f"record {part.skip + within} of {part.filename} "
                    f"(example {index} of split {split!r})"
                )
            within -= part.take
        return f"example {index} of split {split!r}"


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
      folder: where its dataset_info.json lies.
      name: for messages and the identity.
      split: a split of the set, or a part of one: "train", "train[:90%]".
      image_size: side or (height, width) to resize and crop to; None keeps a fixed stored size.
      cache_bytes: decoded images are remembered where all of them fit in this.
    Raises:
      ValueError: unreadable files, another file format, an unknown split, no image feature, or
        stored sizes that vary with no `image_size` given.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        info = builder.info
        features = dict(info.features)
    except Exception as error:
        # Damaged metadata ends as protobuf, JSON, key or type errors.
        raise ValueError(f"cannot read the data set description in {folder}: {error}") from error
    if info.file_format is None or info.file_format.value != "array_record":
        stored_as = "an unknown format" if info.file_format is None else info.file_format.value
        raise ValueError(
            f"{folder} is stored as {stored_as}; only array_record is read without TensorFlow: "
            f"prepare it again in another folder with: guidedflow prepare {name} --data_dir=DIR"
        )
    choose(f"split of {name!r}", split.split("[")[0], dict(info.splits))
    image, label = _image_and_label(name, features)
    stored = features[image].shape
    channels = stored[-1]
    check_channels(channels)
    size = size_of(
        stored[:2] if image_size is None and None not in stored else _given(name, image_size)
    )
    encoded = isinstance(features[image], tfds.features.Image)
    records = _Records(
        _open_split(builder, folder, split, {image: tfds.decode.SkipDecoding()} if encoded else {}),
        image,
        label,
        encoded,
        size,
        channels,
    )
    shape = (*size, channels)
    fits = len(records) * int(np.prod(shape)) <= cache_bytes
    return Dataset(
        source=Remembered(records, shape, np.dtype(np.uint8)) if fits else records,
        image_shape=shape,
        num_classes=features[label].num_classes if label is not None else 1,
        class_names=tuple(features[label].names) if label is not None else (),
        identity={
            "name": name,
            "version": str(info.version),
            "split": split,
            "length": len(records),
            "image_shape": list(shape),
        },
    )


def _given(name: str, image_size: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if image_size is None:
        raise ValueError(f"the images of {name!r} differ in size: give image_size")
    return image_size


def _image_and_label(name: str, features: dict) -> tuple[str, str | None]:
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        or (len(feature.shape or ()) == 3 and feature.np_dtype == np.uint8)
    ]
    if not images:
        raise ValueError(f"data set {name!r} has no image; its features: {', '.join(features)}")
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    return (
        "image" if "image" in images else images[0],
        "label" if "label" in labels else labels[0] if labels else None,
    )


def _open_split(
    builder: tfds.core.DatasetBuilder, folder: Path, split: str, decoders: dict
) -> BaseDataSource:
    try:
        return builder.as_data_source(split, decoders=decoders or None)
    except Exception as error:
        # A truncated file, a missing file and a malformed slice come as unrelated classes.
        raise ValueError(f"cannot open split {split!r} of {folder}: {error}") from error
