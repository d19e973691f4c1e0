"""A bundle whose network is a plain function: what a job draws is then known."""

import dataclasses
from collections.abc import Callable

from guidedflow import paths, predictions
from guidedflow.bundle import Bundle
from guidedflow.conditions import Labels


@dataclasses.dataclass(frozen=True)
class Known:
    """A network without parameters."""

    function: Callable

    def apply(self, variables, *inputs):
        return self.function(*inputs)


def bundle_of(function, **fields):
    """A bundle of ten classes and 4×4×1 images on the linear path, but for what is given."""
    given = {
        "network": Known(function),
        "params": {},
        "path": paths.Linear(),
        "predicts": predictions.velocity,
        "condition": Labels(10),
        "image_shape": (4, 4, 1),
    }
    return Bundle(**{**given, **fields})
