"""A data set that has a shape and classes and no examples, for a plan where the data are not there."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from guidedflow import models
from guidedflow.data import Dataset
from guidedflow.data.dataset import Batch, Indices
from guidedflow.sizes import height_and_width
from guidedflow.training.build import load_dataset


@dataclasses.dataclass(frozen=True)
class _Zeros:
    """A source of one example of zeros."""

    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return 1

    def gather(self, indices: Indices) -> Batch:
        count = len(indices)
        return {
            "image": np.zeros((count, *self.shape), np.uint8),
            "label": np.zeros(count, np.int32),
        }


def stand_in(name: str, image_shape: tuple[int, int, int], num_classes: int) -> Dataset:
    """Return a data set of this shape and so many classes."""
    identity = {"name": name, "length": 1, "image_shape": list(image_shape)}
    return Dataset(
        source=_Zeros(image_shape),
        image_shape=image_shape,
        num_classes=num_classes,
        identity=identity,
    )


def dataset_for(
    config: ConfigDict, image_shape: tuple[int, int, int] | None, num_classes: int | None
) -> Dataset:
    """Return what stands for the configured data set: what the user says, the set, or the preset's own.

    Latents that are not there have the shape and classes that the network's preset was published for.

    Args:
      image_shape, num_classes: as the user says, None for what the data or the preset have.
    Raises:
      ValueError: the set is not there, and nothing says its shape.
    """
    name = config.dataset.name
    if image_shape is not None:
        return stand_in(name, image_shape, num_classes or 1)
    try:
        return load_dataset(config, config.dataset.split)
    except (ValueError, OSError) as error:
        if not name.startswith("latents:"):
            raise ValueError(
                f"{error}; a plan does without it where --image_shape=64x64x3 and --classes=1000 "
                "say what it holds"
            ) from error
    made: Any = models.create(config.network.preset)
    height, width = height_and_width(made.image_size)
    return stand_in(name, (height, width, made.channels), num_classes or made.num_classes)
